"""Suspects and solo crashes: only the request that crashes the ring becomes poison."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from spool import MAX_SOLO_CRASHES, Claim, EntryName, Request, Spool, SpoolOwner, TokenRecord
from tests.fakes.simulated_fs import Disk
from tests.fakes.spool_fakes import open_owner, submit

NAMES = st.builds(
    EntryName,
    st.integers(0, 9),
    st.integers(0, 10**19),
    st.just("0" * 32),
    attempt=st.integers(1, 999_999),
    is_suspect=st.just(True),
    num_solo_crashes=st.integers(0, MAX_SOLO_CRASHES),
    num_tokens=st.integers(0, 10**8),
    is_solo=st.booleans(),
)


def _append(owner: SpoolOwner, claim: Claim) -> None:
    with owner.append_log(claim.request.id) as log:
        log.append([TokenRecord(log.next_index, 1, "x")])


def _claims(owner: SpoolOwner) -> dict[str, Claim]:
    return {claim.request.id: claim for claim in owner.claim(9)}


@given(NAMES)
def test_names_carry_the_counts(name: EntryName) -> None:
    """An active name says all; a waiting one what counts for the next attempt."""
    assert EntryName.parse(name.active) == name
    waiting = EntryName.parse(name.waiting)
    assert waiting == name.put_back(name.num_tokens)
    assert waiting.waiting == name.waiting


def test_only_requests_without_a_new_token_are_suspects(spool: Spool) -> None:
    """After a crash of a batch, what made progress goes on as before; the log of an earlier life is none."""
    quick, stuck = submit(spool), submit(spool)
    with open_owner(spool) as owner:
        claims = _claims(owner)
        assert not any(claim.is_suspect for claim in claims.values())
        _append(owner, claims[quick.id])
    with open_owner(spool) as owner:
        claims = _claims(owner)
        assert [claims[request.id].is_suspect for request in (quick, stuck)] == [False, True]
        assert [claim.num_solo_crashes for claim in claims.values()] == [0, 0]
    with open_owner(spool) as owner:
        assert _claims(owner)[quick.id].is_suspect


def _crash_alone(spool: Spool, request: Request) -> Claim:
    """One life that runs this request alone and dies; the claim it began with."""
    with open_owner(spool) as owner:
        claim = _claims(owner)[request.id]
        owner.mark_solo(claim)
    return claim


def test_three_solo_crashes_are_poison_and_neighbours_are_innocent(spool: Spool) -> None:
    """What waits in active/ while one runs alone did not run: it is neither counted nor suspected."""
    poison, neighbour = submit(spool), submit(spool)
    with open_owner(spool) as owner:
        assert len(_claims(owner)) == 2
    counts = [_crash_alone(spool, poison).num_solo_crashes for _ in range(MAX_SOLO_CRASHES)]
    assert counts == [0, 1, 2]
    late = submit(spool)
    with open_owner(spool) as owner:
        claims = _claims(owner)
        assert claims[poison.id].is_poison
        assert claims[poison.id].num_solo_crashes == MAX_SOLO_CRASHES
        assert (claims[neighbour.id].is_suspect, claims[neighbour.id].num_solo_crashes) == (True, 0)
        assert not claims[late.id].is_suspect


def test_new_token_clears_a_suspect(spool: Spool) -> None:
    """A request that got on while it ran alone starts with a clean sheet, and others are judged again."""
    request, other = submit(spool), submit(spool)
    with open_owner(spool) as owner:
        _claims(owner)
    _crash_alone(spool, request)
    with open_owner(spool) as owner:
        claims = _claims(owner)
        assert (claims[request.id].is_suspect, claims[request.id].num_solo_crashes) == (True, 1)
        owner.mark_solo(claims[request.id])
        _append(owner, claims[request.id])
    with open_owner(spool) as owner:
        claims = _claims(owner)
        assert (claims[request.id].is_suspect, claims[request.id].num_solo_crashes) == (False, 0)
        assert claims[other.id].is_suspect


def test_drain_counts_nothing(spool: Spool) -> None:
    """A request that is put back, marked or not, is as it was; with a new token it is cleared."""
    request = submit(spool)
    with open_owner(spool) as owner:
        _claims(owner)
    _crash_alone(spool, request)
    for _ in range(4):
        with open_owner(spool) as owner:
            claim = _claims(owner)[request.id]
            assert (claim.attempt, claim.num_solo_crashes) == (3, 1)
            owner.mark_solo(claim)
            owner.put_back(claim)
    with open_owner(spool) as owner:
        claim = _claims(owner)[request.id]
        _append(owner, claim)
        owner.put_back(claim)
        assert not _claims(owner)[request.id].is_suspect


def test_log_that_a_power_cut_shortened_counts_against_no_request(spool: Spool) -> None:
    """A crash counts only if the log is as long as it was when the request was marked."""
    request = submit(spool)
    with open_owner(spool) as owner:
        _append(owner, _claims(owner)[request.id])
    with open_owner(spool) as owner:
        _claims(owner)
    _crash_alone(spool, request)
    with open_owner(spool) as owner:
        claim = _claims(owner)[request.id]
        assert claim.num_solo_crashes == 1
        owner.mark_solo(claim)
        (spool.folder.stream / request.id).write_bytes(b"")
    with open_owner(spool) as owner:
        claim = _claims(owner)[request.id]
        assert (claim.is_suspect, claim.num_solo_crashes) == (True, 1)


def test_power_cut_while_one_runs_alone_counts_against_no_request() -> None:
    """The whole machine went down: it stays a suspect, but a later crash is the first that counts."""
    disk = Disk()
    request = submit(Spool.open(Path("/spool"), fs=disk.start_process()))
    counts = []
    for is_power_cut in (False, True, True, False, False):
        owner = open_owner(Spool.open(Path("/spool"), fs=disk.start_process()))
        claim = _claims(owner)[request.id]
        counts.append((claim.is_suspect, claim.num_solo_crashes))
        if claim.is_suspect:
            owner.mark_solo(claim)
        if is_power_cut:
            disk.cut_power(lambda number: number - 1)
        for process in list(disk.processes):
            process.die()
    assert counts == [(False, 0), (True, 0), (True, 0), (True, 0), (True, 1)]


def test_power_cut_after_a_drain_counts_nothing() -> None:
    """Even where the removal of the mark may be undone: the drain was synced."""
    disk = Disk()
    spool = Spool.open(Path("/spool"), fs=disk.start_process())
    request = submit(spool)
    owner = open_owner(spool)
    owner.put_back(owner.mark_solo(_claims(owner)[request.id]))
    disk.cut_power(lambda number: max(0, number - 2))  # of each name the state before its last one
    with open_owner(Spool.open(Path("/spool"), fs=disk.start_process())) as owner:
        assert not _claims(owner)[request.id].is_suspect


def test_marked_claim_is_completed_by_either_claim(spool: Spool) -> None:
    """The claim from before the mark still works."""
    request = submit(spool)
    with open_owner(spool) as owner:
        claim = _claims(owner)[request.id]
        marked = owner.mark_solo(claim)
        assert marked.name.is_solo
        owner.put_back(claim)
        claim = _claims(owner)[request.id]
        assert owner.mark_solo(owner.mark_solo(claim)).name.is_solo
    assert spool.depth().num_active == 1
