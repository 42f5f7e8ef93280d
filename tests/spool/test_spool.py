"""The spool: accepted once, claimed by one, answered once, in order."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from spool import (
    RANK0,
    CorruptRequest,
    Depth,
    EntryName,
    Request,
    Result,
    Spool,
    SpoolLocked,
    SpoolOwner,
    TokenRecord,
    make_door_name,
)
from spool.messages import seal, unseal
from tests.fakes.spool_fakes import answer, claim_one, make_request, open_owner, submit


@pytest.mark.parametrize("durability", ["power", "process"])
def test_request_goes_from_waiting_to_active_to_done(tmp_path: Path, durability: str) -> None:
    """One request's life, with the state and the files that each step leaves."""
    spool = Spool.open(tmp_path / "spool", durability=durability)  # type: ignore[arg-type]
    with open_owner(spool) as owner:
        request = submit(spool)
        assert (spool.state(request.id), spool.read_result(request.id)) == ("waiting", None)
        claim = claim_one(owner)
        assert (claim.request, claim.attempt, spool.state(request.id)) == (request, 1, "active")
        assert 0 <= claim.waited_s < 60
        reader = spool.open_log(request.id)
        with owner.append_log(request.id) as log:
            log.append([TokenRecord(0, 1, "hi")])
        assert reader.read_new() == [TokenRecord(0, 1, "hi")]
        result = answer(request)
        assert owner.complete(claim, result)
        assert (spool.state(request.id), spool.read_result(request.id)) == ("done", result)
        assert spool.depth() == Depth(0, 0, 0)
        assert os.listdir(spool.folder.tmp) == []


def test_second_answer_is_impossible(spool: Spool, owner: SpoolOwner) -> None:
    """The first answer stands; `complete` returns False for the second."""
    request = submit(spool)
    claim = claim_one(owner)
    assert owner.complete(claim, answer(request, "first"))
    assert not owner.complete(claim, answer(request, "second"))
    result = spool.read_result(request.id)
    assert result is not None
    assert result.text == "first"


def test_claims_come_by_priority_then_age_each_once(spool: Spool, owner: SpoolOwner) -> None:
    """Lower priority numbers go first, then the older; nothing is given out twice."""
    late, first, second, urgent = submit(spool, 9), submit(spool), submit(spool), submit(spool, 0)
    assert [spool.position(request.id) for request in (urgent, first, second, late)] == [0, 1, 2, 3]
    assert [claim.request for claim in owner.claim(2)] == [urgent, first]
    assert [claim.request for claim in owner.claim(9)] == [second, late]
    assert owner.claim(9) == []
    assert spool.position(late.id) is None


def test_requests_of_the_last_priority_are_claimed_up_to_a_limit_of_their_own(
    spool: Spool, owner: SpoolOwner
) -> None:
    """The limit counts all claims; the others go on to the larger one."""
    last, first, second = [submit(spool, priority) for priority in (9, 8, 0)]
    assert owner.claim(0, max_yielding=9) == []
    assert [claim.request for claim in owner.claim(9, max_yielding=2)] == [second, first]
    assert owner.claim(9, max_yielding=-1) == []
    assert [claim.request for claim in owner.claim(9, max_yielding=1)] == [last]


def test_clock_that_jumps_back_reorders_nothing(
    spool: Spool, owner: SpoolOwner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests of one process keep their order, and no wait is negative."""
    times = iter([2 * 10**18, 10**18, 10**18, 3])
    monkeypatch.setattr(time, "time_ns", lambda: next(times, 5))
    requests = [submit(spool) for _ in range(3)]
    claims = owner.claim(3)
    assert [claim.request for claim in claims] == requests
    assert all(claim.waited_s >= 0 for claim in claims)


def test_named_requests_can_be_claimed_out_of_turn(spool: Spool, owner: SpoolOwner) -> None:
    """A cancelled request need not wait for its turn to be answered."""
    submit(spool)
    last = submit(spool)
    assert spool.cancel(last.id)
    (claim,) = owner.claim(9, only=owner.cancelled())
    assert claim.request == last


def test_error_of_a_second_owner_names_the_holder(spool: Spool, owner: SpoolOwner) -> None:
    """The lock is exclusive, names its holder, and is free again at its end."""
    rival = SpoolOwner(Spool.open(spool.folder.root, durability="process"))
    with pytest.raises(SpoolLocked, match=str(os.getpid())) as caught:
        rival.acquire()
    assert caught.value.pid == os.getpid()
    owner.close()
    rival.acquire()
    rival.close()


def test_recovery_puts_back_what_is_unanswered_with_the_next_attempt(spool: Spool) -> None:
    """Active without a result waits again, in its old place; active with a result is only cleaned up."""
    unanswered, answered, waiting = submit(spool), submit(spool), submit(spool)
    with open_owner(spool) as owner:
        claim, done = owner.claim(2)
        target = spool.folder.active / done.name.active
        content = target.read_bytes()
        owner.complete(done, answer(answered))
        target.write_bytes(content)  # as if it had died between the result and the claim's removal
    with SpoolOwner(spool) as owner:
        assert owner.recover() == [unanswered.id]
        assert spool.depth().num_active == 0
        assert [claim.request for claim in owner.claim(9)] == [unanswered, waiting]
        assert spool.state(answered.id) == "done"
    with SpoolOwner(spool) as owner:
        owner.recover()
        assert [claim.attempt for claim in owner.claim(9)] == [3, 2]
    assert claim.attempt == 1


def test_put_back_request_keeps_its_attempt_and_its_log(spool: Spool, owner: SpoolOwner) -> None:
    """A drain parks a request without holding that against it."""
    request = submit(spool)
    claim = claim_one(owner)
    with owner.append_log(request.id) as log:
        log.append([TokenRecord(0, 1, "a")])
    owner.put_back(claim)
    assert spool.state(request.id) == "waiting"
    assert claim_one(owner).attempt == 1
    with owner.append_log(request.id) as log:
        assert log.resumed == (TokenRecord(0, 1, "a"),)


def test_damaged_result_is_put_aside_and_the_request_runs_again(spool: Spool) -> None:
    """A result that the disk damaged before its claim was removed is no answer."""
    request = submit(spool)
    with open_owner(spool) as owner:
        claim_one(owner)
    Path(spool.folder.result(request.id)).write_bytes(b"")
    with pytest.raises(CorruptRequest):
        spool.read_result(request.id)
    with SpoolOwner(spool) as owner:
        assert owner.recover() == [request.id]
        assert owner.complete(claim_one(owner), answer(request))


def test_cancel_leaves_a_marker_until_the_request_ends(spool: Spool, owner: SpoolOwner) -> None:
    """Waiting and active requests can be cancelled; unknown and done ones are False."""
    request = submit(spool)
    assert not spool.cancel(uuid.uuid4().hex)
    assert spool.cancel(request.id)
    assert spool.cancel(request.id)
    assert owner.cancelled() == {request.id}
    owner.clear_cancel(request.id)
    assert owner.cancelled() == set()
    claim = claim_one(owner)
    assert spool.cancel(request.id)
    owner.complete(claim, replace(answer(request), finish_reason="cancelled"))
    assert owner.cancelled() == set()
    assert not spool.cancel(request.id)


@pytest.mark.parametrize("id", ["", "../../etc/passwd", "A" * 32, "0" * 31, "0" * 32 + "\n", "0" * 33])
def test_id_that_is_none_of_ours_reaches_no_path(spool: Spool, owner: SpoolOwner, id: str) -> None:
    """Every door into the spool checks the id's pattern."""
    calls: list[Callable[[str], object]] = [
        spool.state,
        spool.cancel,
        spool.keep,
        spool.read_result,
        spool.open_log,
    ]
    for call in [*calls, spool.position, owner.append_log, owner.clear_cancel]:
        with pytest.raises(ValueError, match="request id"):
            call(id)
    with pytest.raises(ValueError, match="request id"):
        replace(make_request(), id=id)


def test_submit_and_owner_ring_each_other(spool: Spool, owner: SpoolOwner) -> None:
    """An accepted request and a cancel wake rank 0; rank 0 wakes every front door."""
    with owner.listen() as bell, spool.listen(make_door_name()) as door:
        request = submit(spool)
        assert bell.drain() == 1
        spool.cancel(request.id)
        assert bell.drain() == 1
        assert owner.ring_doors() == 1
        assert door.drain() == 1
    assert RANK0 not in os.listdir(spool.folder.bell)


def test_a_request_may_be_stopped_later_unless_that_is_taken_back(spool: Spool, owner: SpoolOwner) -> None:
    """The spool holds the time, so any process may die; an immediate cancel cannot be revoked."""
    kept, later, now = submit(spool), submit(spool), submit(spool)
    for request in (kept, later):
        assert spool.cancel(request.id, after_seconds=0.05)
    spool.cancel(now.id)
    assert spool.keep(kept.id)
    assert not spool.keep(kept.id)
    assert not spool.keep(now.id)
    assert (owner.cancelled(), spool.ending_later()) == ({now.id}, {later.id})
    time.sleep(0.06)
    assert owner.cancelled() == {now.id, later.id}
    for claim in owner.claim(9):
        owner.complete(claim, answer(claim.request))
    assert os.listdir(spool.folder.cancel) == []
    assert not spool.cancel(later.id, after_seconds=9)


def test_epoch_grows_over_lives_and_after_damage(spool: Spool) -> None:
    """No two lives of the ring share an epoch, even when the file was lost to nonsense."""
    epochs = []
    for damage in (None, None, b"garbage", None):
        if damage is not None:
            spool.folder.epoch.write_bytes(damage)
        with open_owner(spool) as owner:
            epochs.append(owner.next_epoch())
    assert epochs == sorted(set(epochs))
    assert epochs[:2] == [1, 2]
    assert epochs[-1] < 2**31


def test_sweep_removes_only_what_is_old_and_finished(spool: Spool, owner: SpoolOwner) -> None:
    """Old results go with their logs; young ones, waiting, active, and their logs stay."""
    done, active, waiting = submit(spool), submit(spool), submit(spool)
    for claim in owner.claim(2):
        with owner.append_log(claim.request.id) as log:
            log.append([TokenRecord(0, 1, "x")])
        if claim.request == done:
            owner.complete(claim, answer(done))
    stale = [spool.folder.tmp / "1-x", spool.folder.cancel / ("0" * 32), spool.folder.stream / ("1" * 32)]
    for path in stale:
        path.write_text("")
    assert owner.sweep(time.time() + 50, 100.0).num_files == 0
    assert owner.sweep(time.time() + 1e6, 100.0).num_files == 4
    states = [spool.state(request.id) for request in (done, active, waiting)]
    assert states == [None, "active", "waiting"]
    assert os.listdir(spool.folder.stream) == [active.id]
    assert not any(path.exists() for path in stale)


def test_fields_added_later_are_kept_and_may_be_absent() -> None:
    """A file written before is_chat, client_id, literals, owner and seed were there still reads."""
    request = replace(make_request(), is_chat=True, client_id="theirs", literals=(1, 5))
    result = replace(answer(request), owner="ann", seed=7)
    assert Request.from_json(request.to_json()) == request
    assert Result.from_json(result.to_json()) == result
    for kind, data, names in (
        ("request", request.to_json(), ("is_chat", "client_id", "literals")),
        ("result", result.to_json(), ("owner", "seed")),
    ):
        body = unseal(kind, data)
        older = seal(kind, {name: value for name, value in body.items() if name not in names})
        read = Request.from_json(older) if kind == "request" else Result.from_json(older)
        assert [getattr(read, name) for name in names] in ([False, "", None], ["", None])
    body = unseal("request", request.to_json())
    assert "stop" not in body["params"], "what asks for nothing is not written"
    assert Request.from_json(seal("request", body)) == request


def test_names_sort_by_priority_then_time() -> None:
    """The order of names as text is the order of the queue, attempts included."""
    id = "0" * 32
    names = [EntryName(p, t, id, a) for p in (0, 5, 9) for t in (1, 10**18, 2 * 10**18) for a in (1, 2, 10)]
    assert all(EntryName.parse(name.waiting) == EntryName.parse(name.active) == name for name in names)
    stems = [name.active[:22] for name in names]
    assert stems == sorted(stems)
    assert EntryName.parse(f"5-{1:020d}-{id}.0.json") is None
    assert EntryName.parse(f"5-{1:020d}-{id}.json\n") is None
