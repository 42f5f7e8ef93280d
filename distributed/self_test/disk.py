"""The lines of disk and doorbell: fsync, F_FULLFSYNC, what a request pays to be accepted, waking a process.

In a spool of its own. Imports no MLX.
"""

from __future__ import annotations

import fcntl
import os
import select
import sys
import time
from collections.abc import Callable

from distributed.self_test.reporting import Report, Task, await_ready, format_ms, peer, say_ready
from spool import Doorbell, Request, SamplingParams, Spool, make_id, ring

NUM_SYNCS, NUM_RINGS = 20, 200
NUM_BYTES = 1024
RING_LIMIT_S = 2.0
OWN_BELL, PEER_BELL = "rank0", "door-self-test"


def run(task: Task, report: Report) -> None:
    """Measure all lines."""
    with report.attempt("fsync"):
        report.spread("fsync", _time_syncs(task, os.fsync))
    with report.attempt("full-fsync"):
        if sys.platform == "darwin":
            report.spread("full-fsync", _time_syncs(task, lambda fd: fcntl.fcntl(fd, fcntl.F_FULLFSYNC)))
        else:
            report.line("full-fsync", "only macOS has F_FULLFSYNC")
    with report.attempt("accept"):
        report.spread("accept", _time_accepts(task), " for a request with SPOOL_DURABILITY=power")
    with report.attempt("doorbell"):
        report.spread("doorbell", _time_rings(task), " from one process to another")


def _time_syncs(task: Task, sync: Callable[[int], object]) -> list[float]:
    times = []
    for number in range(NUM_SYNCS):
        descriptor = os.open(task.folder / f"synced-{number}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            os.write(descriptor, bytes(NUM_BYTES))
            times.append(_time(lambda: sync(descriptor)))  # noqa: B023 - called at once
        finally:
            os.close(descriptor)
    return times


def _time_accepts(task: Task) -> list[float]:
    spool = Spool.open(task.folder / "spool")

    def submit() -> None:
        params = SamplingParams(max_tokens=1)
        spool.submit(
            Request(make_id(), params, text="x", token_ids=None, tokenizer_hash=None, model="self-test")
        )

    return [_time(submit) for _ in range(NUM_SYNCS)]


def _time_rings(task: Task) -> list[float]:
    """Half of each round trip."""
    folder = task.folder / "bell"
    folder.mkdir(exist_ok=True)
    with peer("bell-peer", task) as other, Doorbell(folder, OWN_BELL) as bell:
        await_ready(other)
        times = []
        for _ in range(NUM_RINGS):
            began = time.perf_counter()
            ring(folder, PEER_BELL)
            if not select.select([bell], [], [], RING_LIMIT_S)[0]:
                raise TimeoutError(f"no ring came back within {format_ms(RING_LIMIT_S)}")
            times.append((time.perf_counter() - began) / 2)
            bell.drain()
        return times


def run_bell_peer(task: Task, report: Report) -> None:
    """Answer each ring with one."""
    folder = task.folder / "bell"
    with Doorbell(folder, PEER_BELL) as bell:
        say_ready()
        while select.select([bell], [], []):
            bell.drain()
            ring(folder, OWN_BELL)


def _time(act: Callable[[], object]) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began
