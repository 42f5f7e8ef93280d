"""Retention by room: the oldest results go early, with all that is theirs, and nothing else does."""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from pathlib import Path

import pytest

from spool import FileSystem, Request, Spool, SpoolOwner, TokenRecord
from spool.fsio import AnyPath
from spool.sweep import BLOCK_BYTES, GRACE_SECONDS
from tests.fakes.simulated_fs import Crash, Disk, SimulatedFileSystem
from tests.fakes.spool_fakes import answer, claim_one, make_request, open_owner, submit

RETENTION_SECONDS = 86_400.0
HELD = 3 * BLOCK_BYTES  # by each small finished request: its result, its log and what was asked
LATER = GRACE_SECONDS + 10.0


class CountingFileSystem(FileSystem):
    """The real one; counts which folders are listed and how many files are looked at."""

    def __init__(self) -> None:
        self.num_lists: Counter[str] = Counter()
        self.num_stats: Counter[str] = Counter()

    def names(self, folder: Path) -> list[str]:
        self.num_lists[folder.name] += 1
        return super().names(folder)

    def stat(self, path: AnyPath) -> os.stat_result:
        self.num_stats[Path(path).parent.name] += 1
        return super().stat(path)


def finish(spool: Spool, owner: SpoolOwner, key: str | None = None) -> Request:
    """Ask and answer one request, with a token in its log."""
    request = make_request()
    spool.submit(request, key)
    claim = claim_one(owner)
    with owner.append_log(request.id) as log:
        log.append([TokenRecord(0, 1, "x")])
    owner.complete(claim, answer(request))
    return request


def set_ages(spool: Spool, requests: list[Request], ages: list[float]) -> None:
    """Let the results' files say that they are so old, and the keys' that they are older."""
    results = [spool.folder.result(request.id) for request in requests]
    keys = [str(spool.folder.idem / name) for name in os.listdir(spool.folder.idem)]
    for path, age in zip([*results, *keys], [*ages, *[100.0] * len(keys)], strict=True):
        os.utime(path, (time.time() - age,) * 2)


def states(spool: Spool, requests: list[Request]) -> list[str | None]:
    return [spool.state(request.id) for request in requests]


def test_the_oldest_results_go_early_with_all_that_is_theirs(tmp_path: Path) -> None:
    """In a real folder: two of four are over the limit; their logs, requests and keys go, others' stay."""
    spool = Spool.open(tmp_path / "spool", durability="process")
    with open_owner(spool) as owner:
        requests = [finish(spool, owner, f"key {number}") for number in range(4)]
        set_ages(spool, requests, [20, 40, 10, 30])
        swept = owner.sweep(time.time() + LATER, RETENTION_SECONDS, 2 * HELD)
        assert states(spool, requests) == ["done", None, "done", None]
        assert (swept.num_results_by_age, swept.num_results_by_size, swept.num_files) == (0, 2, 4)
        assert (swept.num_kept_results, swept.num_kept_bytes) == (2, 2 * HELD)
        for folder in (spool.folder.done, spool.folder.stream, spool.folder.asked, spool.folder.idem):
            assert len(os.listdir(folder)) == 2
        assert spool.submit(make_request(), "key 0") == requests[0].id
        retry = make_request()
        assert spool.submit(retry, "key 1") == retry.id


def test_nothing_goes_early_without_a_limit_or_below_it(tmp_path: Path) -> None:
    """0 is no limit; what just fits stays."""
    spool = Spool.open(tmp_path / "spool", durability="process")
    with open_owner(spool) as owner:
        for _ in range(3):
            finish(spool, owner)
        for max_bytes in (0, 3 * HELD):
            swept = owner.sweep(time.time() + LATER, RETENTION_SECONDS, max_bytes)
            assert (swept.num_files, swept.num_kept_bytes) == (0, 3 * HELD)


def test_young_results_and_unfinished_requests_stay_whatever_the_limit(tmp_path: Path) -> None:
    """Somebody may be about to fetch a result that is minutes old; waiting and active ones are no results."""
    spool = Spool.open(tmp_path / "spool", durability="process")
    with open_owner(spool) as owner:
        done, active, waiting = finish(spool, owner, "done"), submit(spool), submit(spool)
        claim_one(owner)
        with owner.append_log(active.id) as log:
            log.append([TokenRecord(0, 1, "x" * 100_000)])
        assert owner.sweep(time.time() + GRACE_SECONDS - 10, RETENTION_SECONDS, 1).num_files == 0
        assert owner.sweep(time.time() + LATER, RETENTION_SECONDS, 1).num_results_by_size == 1
        assert states(spool, [done, active, waiting]) == [None, "active", "waiting"]
        assert os.listdir(spool.folder.stream) == [active.id]
        assert os.listdir(spool.folder.asked) == os.listdir(spool.folder.idem) == []


def test_a_sweep_by_room_looks_at_nothing_twice(tmp_path: Path) -> None:
    """Each folder is listed once and each finished file described once, over the limit or not."""
    fs = CountingFileSystem()
    spool = Spool.open(tmp_path / "spool", durability="process", fs=fs)
    with open_owner(spool) as owner:
        for number in range(5):
            finish(spool, owner, f"key {number}")
        for max_bytes, num_left in ((0, 5), (3 * HELD, 5), (3 * HELD, 3)):
            fs.num_lists.clear()
            fs.num_stats.clear()
            owner.sweep(time.time() + LATER, RETENTION_SECONDS, max_bytes)
            assert set(fs.num_lists.values()) == {1}
            looked_at = {name: fs.num_stats[name] for name in ("done", "stream", "asked", "idem")}
            assert looked_at == dict.fromkeys(looked_at, num_left)


@pytest.mark.parametrize("is_power_cut", [False, True])
def test_death_at_any_call_of_a_sweep_by_room_leaves_no_half_result(is_power_cut: bool) -> None:
    """On the simulated disk: whatever dies when, what is left of a request is its whole answer or nothing
    that counts, what waits is still there, and the next sweep has room."""
    num_calls, is_dead = 0, True
    while is_dead:
        disk = Disk()
        spool = Spool.open(Path("/spool"), fs=disk.start_process())
        owner = open_owner(spool)
        requests = [finish(spool, owner, f"key {number}") for number in range(3)]
        waiting = submit(spool)
        fs = spool.fs
        assert isinstance(fs, SimulatedFileSystem)
        fs.num_calls_left = num_calls
        with contextlib.suppress(Crash):
            owner.sweep(time.time() + LATER, RETENTION_SECONDS, HELD)
            is_dead = False
        if is_power_cut:
            disk.cut_power(lambda number, first=num_calls: first % number)  # type: ignore[misc]
        fs.die()
        num_calls += 1
        after = Spool.open(Path("/spool"), fs=disk.start_process())
        with open_owner(after) as heir:
            assert [claim.request for claim in heir.claim(9)] == [waiting]  # answered ones leave the queue
            assert heir.sweep(time.time() + LATER, RETENTION_SECONDS, HELD).num_kept_bytes <= HELD
        left = [request for request in requests if after.state(request.id) is not None]
        assert all(after.read_result(request.id) is not None for request in left)
        assert all(after.state(request.id) == "done" for request in left)
        if not is_power_cut:  # which may take a log, or bring one back: it goes by age
            assert len(left) == 1
            for folder in (after.folder.asked, after.folder.stream, after.folder.idem):
                assert len(after.names(folder)) == len(left)
        assert after.state(waiting.id) == "active"
    assert num_calls > 20
