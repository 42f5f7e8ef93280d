"""What the service costs when nobody asks: CPU seconds of all its processes over some idle time.

The supervisor and every process below it, by pid, from the kernel's accounting (psutil cpu_times: user and
system, in steps of 10 ms a process). Starts after one answer, so that what is idle is a service in use. Knows
nothing of what the processes do.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import Any

import psutil

from bench.contender import BenchError
from bench.ground import make_ground, only_one
from bench.machine import describe_machine
from bench.measuring import warm_up
from bench.ours import Ours
from bench.progress import Progress
from bench.records import write_run
from bench.report import describe_contender, describe_ground
from cluster.service import read_service
from cluster.terminal import make_table

SETTLE_S = 3.0


@dataclass(frozen=True)
class ProcessCpu:
    """CPU seconds that one process had used at one moment."""

    name: str
    cpu_s: float


def run_idle(duration_s: float, progress: Progress, *, as_json: bool) -> int:
    """Measure and print; 0."""
    started_unix = time.time()
    ground = make_ground()
    with only_one(ground):
        progress.line("starting")
        ours = Ours(ground)
        with ours.running() as server:
            warm_up(server)
            time.sleep(SETTLE_S)  # the last answer's doors and files are closed by then
            progress.line(f"idle for {duration_s:g} s")
            used, wall_s = measure_idle(ours, duration_s)
    shares = {name: cpu_s / wall_s for name, cpu_s in used.items()}
    data: dict[str, Any] = {
        "started_unix": started_unix,
        "machine": describe_machine(),
        "contenders": [ours.describe()],
        "wall_s": wall_s,
        "cpu_s": used,
        "share_of_one_core": sum(shares.values()),
    }
    path = write_run(ground.folder, "idle", data)
    if as_json:
        sys.stdout.write(path.read_text(encoding="utf-8") + "\n")
        return 0
    print("\n" + "\n".join(describe_ground(data["machine"], str(ground.model_folder), ground.num_ranks)))
    print("\n".join(describe_contender(ours.describe())))
    print("\n" + "\n".join(make_idle_table(used, wall_s)))
    print(f"\nRaw data: {path}")
    return 0


def make_idle_table(used: dict[str, float], wall_s: float) -> list[str]:
    """One row a process, and all together."""
    rows = [("process", "CPU s", f"of one core over {wall_s:.1f} s")]
    for name, cpu_s in [*used.items(), ("all together", sum(used.values()))]:
        rows.append((name, f"{cpu_s:.2f}", f"{cpu_s / wall_s:.2%}"))
    return make_table(rows)


def measure_idle(ours: Ours, duration_s: float) -> tuple[dict[str, float], float]:
    """CPU seconds by process over the duration, and how long that really was.

    Raises:
        BenchError: a process came or went meanwhile.
    """
    service = read_service(ours.settings)
    if service.holder is None:
        raise BenchError("our service has no supervisor any more")
    names = {identity.pid: name for name, identity in service.processes.items()}
    start_s = time.monotonic()
    before = read_tree(service.holder.pid, names)
    time.sleep(duration_s)
    after = read_tree(service.holder.pid, names)
    wall_s = time.monotonic() - start_s
    if before.keys() != after.keys():
        raise BenchError("a process of our service started or ended while it was to be idle")
    return {after[pid].name: after[pid].cpu_s - before[pid].cpu_s for pid in after}, wall_s


def read_tree(root_pid: int, names: dict[int, str]) -> dict[int, ProcessCpu]:
    """CPU seconds so far of a process and all below it, by pid."""
    root = psutil.Process(root_pid)
    found: dict[int, ProcessCpu] = {}
    for process in [root, *root.children(recursive=True)]:
        name = names.get(process.pid, "supervisor" if process.pid == root_pid else f"pid {process.pid}")
        times: Any = process.cpu_times()
        found[process.pid] = ProcessCpu(name, times.user + times.system)
    return found
