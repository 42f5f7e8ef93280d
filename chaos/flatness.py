"""Whether anything grows over a run, first third against last: descriptors, memory, processes, files.

Takes one sample a second of the supervisor, the front door and rank 0 (whichever processes these are at that
moment; the last two only while the service is ready), of all processes with the run's mark, and of the files
in STATE_DIR. Files of requests (waiting, active, result, token log, key) do not count: the rest has no owner.
"""

from __future__ import annotations

import os
import statistics
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from chaos.killer import MARKER
from cluster.processes import PSUTIL_ERRORS, ProcessIdentity
from cluster.supervisor.service import read_service
from config import Settings
from spool.names import id_of, is_entry_name

INTERVAL_S = 1.0
MIN_SAMPLES, MIN_VALUES = 30, 8  # of a run, and of one value in a third
MAX_RATIO = 1.25
MIB = 2**20
# How far the last third may exceed MAX_RATIO times the first; by the end of the sample's name.
ALLOWANCES = {"descriptors": 8.0, "memory_mib": 24.0, "num_processes": 3.0, "num_files": 24.0}


@dataclass(frozen=True)
class Growth:
    """One value's medians of the first and the last third of the run."""

    name: str
    first: float
    last: float
    bound: float  # the most that `last` may be

    @property
    def is_flat(self) -> bool:
        return self.last <= self.bound


def compare_thirds(samples: Sequence[Mapping[str, float]]) -> list[Growth]:
    """The growth of every value that both thirds have; none if the run was too short."""
    if len(samples) < MIN_SAMPLES:
        return []
    third = len(samples) // 3
    first, last = samples[:third], samples[-third:]
    found = []
    for name in sorted({name for sample in samples for name in sample}):
        before, after = ([sample[name] for sample in part if name in sample] for part in (first, last))
        if min(len(before), len(after)) >= MIN_VALUES:
            start, end = statistics.median(before), statistics.median(after)
            allowance = next(value for suffix, value in ALLOWANCES.items() if name.endswith(suffix))
            found.append(Growth(name, start, end, start * MAX_RATIO + allowance))
    return found


@dataclass
class Sampler:
    """Takes samples of one service until `stopping` is set."""

    settings: Settings
    marker: str
    samples: list[dict[str, float]] = field(default_factory=list)

    def run(self, stopping: threading.Event) -> None:
        """Sample at every interval."""
        while not stopping.wait(INTERVAL_S):
            self.samples.append(self.take())

    def take(self) -> dict[str, float]:
        """One sample: values by name; a process that does not run now has none."""
        service = read_service(self.settings)
        found = {"supervisor": service.holder}
        if service.state == "ready":  # while it starts it is smaller
            found |= {name: service.processes.get(name) for name in ("api", "rank 0")}
        values: dict[str, float] = {}
        for name, identity in found.items():
            values |= {f"{name} {what}": value for what, value in measure(identity).items()}
        values["num_processes"] = len(list(marked_processes(self.marker)))
        values["num_files"] = count_files(self.settings.state_dir)
        return values


def measure(identity: ProcessIdentity | None) -> dict[str, float]:
    """Descriptors and resident memory of a living process."""
    if identity is None or not identity.is_alive():
        return {}
    try:
        process = psutil.Process(identity.pid)
        return {
            "descriptors": process.num_fds(),
            "memory_mib": round(process.memory_info().rss / MIB, 1),
        }
    except PSUTIL_ERRORS:
        return {}


def marked_processes(marker: str) -> Iterator[psutil.Process]:
    """Every living process of a run, orphans among them."""
    for pid in psutil.pids():
        try:
            process = psutil.Process(pid)
            if process.environ().get(MARKER) == marker and process.status() != psutil.STATUS_ZOMBIE:
                yield process
        except PSUTIL_ERRORS:
            continue


def count_files(state_dir: Path) -> int:
    """Files and folders of a STATE_DIR, without those of requests that are finished or in the queue."""
    num_all = sum(len(folders) + len(files) for _, folders, files in os.walk(state_dir))
    done, asked, logs, keys, incoming, active = (
        _names(state_dir / "spool" / name)
        for name in ("done", "asked", "stream", "idem", "incoming", "active")
    )
    ids = {name.removesuffix(".json") for name in done}
    ids |= {id_of(name) for name in incoming | active if is_entry_name(name)}
    num_kept = len(done) + len(asked & done) + len(incoming) + len(active) + len(ids & logs)
    # A key's file does not name its request: count as many keys as requests.
    return num_all - num_kept - min(len(keys), len(ids))


def _names(folder: Path) -> set[str]:
    try:
        return set(os.listdir(folder))
    except OSError:
        return set()
