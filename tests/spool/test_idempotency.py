"""Idempotency keys: one request a key, after any crash and with simultaneous submits."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from msgspec.structs import replace

from spool import CorruptRequest, IdempotencyConflict, Spool, SpoolFull
from tests.fakes.simulated_fs import Crash, Disk, SimulatedFileSystem
from tests.fakes.spool_fakes import answer, claim_one, make_request, open_owner

ROOT = Path("/spool")


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool.open(tmp_path / "spool", max_depth=1)


def test_retry_gets_the_first_id_in_every_state(spool: Spool) -> None:
    """Waiting, active and done, also where the queue is full; one request ran."""
    request = make_request()
    with open_owner(spool) as owner:
        assert spool.submit(request, "key") == request.id
        assert spool.submit(make_request(), "key") == request.id
        claim = claim_one(owner)
        assert spool.submit(make_request(), "key") == request.id
        owner.complete(claim, answer(request))
        assert spool.submit(make_request(), "key") == request.id
        assert owner.claim(9) == []
    assert len(os.listdir(spool.folder.done)) == 1


def test_another_body_is_a_conflict_and_another_owner_is_not(tmp_path: Path) -> None:
    """A key belongs to its owner, and stands for one body only, whatever the front door made of it."""
    spool = Spool.open(tmp_path / "spool")
    request = replace(make_request(), owner="ann")
    spool.submit(request, "key", body_hash="1")
    again = replace(make_request(text="resolved otherwise"), owner="ann")
    assert spool.submit(again, "key", body_hash="1") == request.id
    with pytest.raises(IdempotencyConflict) as caught:
        spool.submit(again, "key", body_hash="2")
    assert (caught.value.status, caught.value.code) == (409, "idempotency_conflict")
    other = replace(make_request(), owner="bob")
    assert spool.submit(other, "key", body_hash="2") == other.id
    assert spool.depth().num_waiting == 2


def test_refused_submit_leaves_no_record(spool: Spool) -> None:
    """A full queue refuses before the key is taken."""
    spool.submit(make_request())
    with pytest.raises(SpoolFull):
        spool.submit(make_request(), "key")
    assert os.listdir(spool.folder.idem) == []


def test_retry_under_a_damaged_record_is_refused(spool: Spool) -> None:
    """The first request cannot be known: the retry is refused rather than answered twice."""
    spool.submit(make_request(), "key")
    (record,) = spool.folder.idem.iterdir()
    record.write_bytes(b"")
    with pytest.raises(CorruptRequest):
        spool.submit(make_request(), "key")


def test_key_and_prompt_are_not_stored_in_the_record(spool: Spool) -> None:
    """The record has hashes only."""
    spool.submit(make_request(text="canary"), "key-canary")
    (record,) = spool.folder.idem.iterdir()
    assert "canary" not in record.name
    assert b"canary" not in record.read_bytes()


def test_record_goes_with_its_result(spool: Spool) -> None:
    """It stays as long as the request waits, runs or has a result."""
    request = make_request()
    with open_owner(spool) as owner:
        spool.submit(request, "key")
        owner.sweep(time.time() + 1e9, 10.0)
        owner.complete(claim_one(owner), answer(request))
        owner.sweep(time.time(), 10.0)
        assert len(os.listdir(spool.folder.idem)) == 1
        assert owner.sweep(time.time() + 1e9, 10.0).num_files == 2
        assert os.listdir(spool.folder.idem) == []
        retry = make_request()
        assert spool.submit(retry, "key") == retry.id


def _count_answers(fs: SimulatedFileSystem) -> int:
    """Answer everything that waits; how many results there are."""
    spool = Spool.open(ROOT, fs=fs)
    with open_owner(spool) as owner:
        for claim in owner.claim(9):
            owner.complete(claim, answer(claim.request))
    return len(fs.names(spool.folder.done))


def test_death_at_any_call_leaves_one_request_at_most() -> None:
    """The submitter dies at each call in turn; the retry and the first one are the same request."""
    num_calls, is_dead = 0, True
    while is_dead:
        disk = Disk()
        spool = Spool.open(ROOT, fs=(fs := disk.start_process()))
        fs.num_calls_left = num_calls
        request = make_request()
        try:
            spool.submit(request, "key")
            is_dead = False
        except Crash:
            num_calls += 1
        spool = Spool.open(ROOT, fs=disk.start_process())
        id = spool.submit(make_request(), "key")
        disk.cut_power(lambda number: 0)  # an accepted request survives
        spool = Spool.open(ROOT, fs=disk.start_process())
        assert spool.state(id) == "waiting"
        assert spool.submit(make_request(), "key") == id
        assert is_dead or id == request.id
        assert _count_answers(disk.start_process()) == 1
    assert num_calls > 15


@pytest.mark.parametrize("is_answered", [False, True])
def test_two_submits_at_the_same_moment_are_one_request(is_answered: bool) -> None:
    """A second submit, and even its answer, come between any two calls of the first one."""
    at, was_called = 0, True
    while was_called:
        disk, was_called = Disk(), False
        spool = Spool.open(ROOT, fs=(fs := disk.start_process()))
        rival = Spool.open(ROOT, fs=disk.start_process())
        request, ids = make_request(), list[str]()

        def meanwhile(
            last: int = fs.num_calls + at,
            fs: SimulatedFileSystem = fs,
            rival: Spool = rival,
            disk: Disk = disk,
        ) -> None:
            nonlocal was_called
            if fs.num_calls == last and not was_called:
                was_called = True
                ids.append(rival.submit(make_request(), "key"))  # noqa: B023 (called in this round only)
                if is_answered:
                    assert _count_answers(disk.start_process()) == 1

        fs.before_call = meanwhile
        ids.append(spool.submit(request, "key"))
        fs.before_call = None
        assert len(set(ids)) == 1
        assert _count_answers(disk.start_process()) == 1
        assert rival.state(ids[0]) == "done"
        at += 1
    assert at > 15
