"""How much memory each place in the ring has for weights and KV, and how fast its ranks are.

Counts free memory, on a Mac what the GPU may use, less what each rank takes beside weights and KV. While a
stage decodes, its time goes by how fast the chip reads memory; an unknown chip makes all hosts equally fast.
Nothing of the Macs was measured: only a Mac can prove it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cluster.errors import ClusterError
from cluster.hosts.hosts import Cluster
from cluster.hosts.probe import HostFacts
from distributed.planning.capacities import RANK_BYTES

# macOS lets the GPU use 2/3 of a small memory and 3/4 of a larger one, unless iogpu.wired_limit_mb says
# otherwise.
MAX_SMALL_MAC_BYTES = 36 << 30
# GB/s by which a chip reads memory, from Apple's published figures.
BANDWIDTHS = {
    "Apple M1": 68,
    "Apple M1 Pro": 200,
    "Apple M1 Max": 400,
    "Apple M1 Ultra": 800,
    "Apple M2": 100,
    "Apple M2 Pro": 200,
    "Apple M2 Max": 400,
    "Apple M2 Ultra": 800,
    "Apple M3": 100,
    "Apple M3 Pro": 150,
    "Apple M3 Max": 400,
    "Apple M3 Ultra": 819,
    "Apple M4": 120,
    "Apple M4 Pro": 273,
    "Apple M4 Max": 546,
    "Apple M5": 153,
    "Apple M5 Pro": 307,
    "Apple M5 Max": 614,
}
# The smaller one of two variants of a name, by its GPU cores.
SMALLER_VARIANTS = {
    ("Apple M3 Max", 30): 300,
    ("Apple M4 Max", 32): 410,
    ("Apple M5 Max", 32): 460,  # an estimate
}


class PlanRefused(ClusterError):
    """The hosts cannot hold the model, or cannot be one ring; the message has the numbers."""


@dataclass(frozen=True)
class HostRoom:
    """A place in the ring and its memory; this machine can have two places, which share its memory."""

    name: str
    num_ranks: int
    total_bytes: int
    free_bytes: int
    usable_bytes: int  # for weights and KV of its ranks: from free memory, on a Mac from the GPU's
    speed: float  # of each of its ranks
    has_gpu: bool
    bandwidth: float | None = None  # GB/s by which the whole machine reads memory; None: unknown


def measure_rooms(
    cluster: Cluster, facts: Sequence[HostFacts], held_bytes: Mapping[str, int]
) -> tuple[HostRoom, ...]:
    """The memory that each place has for weights and KV.

    Args:
        held_bytes: by host name, the memory of ranks that will have ended when the new ones start.

    Raises:
        PlanRefused: a host's memory is unknown.
    """
    bandwidths = [find_bandwidth(entry) for entry in facts]
    rooms = []
    for host, known, bandwidth in zip(cluster.hosts, facts, bandwidths, strict=True):
        if known.free_memory_bytes is None or known.total_memory_bytes is None:
            raise PlanRefused(f"{host.name} does not report its memory: leave it out of WORKER_HOSTS")
        places = [other for other in cluster.hosts if other.ssh == host.ssh]
        num_ranks = sum(other.num_ranks for other in places)
        speed = float(bandwidth) if bandwidth and all(bandwidths) else 1.0
        free = min(known.total_memory_bytes, known.free_memory_bytes + held_bytes.get(host.name, 0))
        has_metal = known.system == "Darwin" and known.machine == "arm64"
        gpu_limit = known.gpu_wired_limit_bytes or mac_gpu_bytes(known.total_memory_bytes)
        rooms.append(
            make_room(
                host.name,
                host.num_ranks,
                total_bytes=known.total_memory_bytes,
                free_bytes=free,
                gpu_limit_bytes=gpu_limit if has_metal else None,
                num_ranks_there=num_ranks,
                speed=speed,
                bandwidth=bandwidth,
                has_gpu=has_metal or any(name.startswith("mlx-cuda") for name in known.versions),
            )
        )
    return tuple(rooms)


def find_bandwidth(facts: HostFacts) -> int | None:
    """GB/s by which a host reads memory; None if unknown."""
    chip = facts.chip.strip()
    smaller = SMALLER_VARIANTS.get((chip, facts.num_gpu_cores or 0))
    return smaller or BANDWIDTHS.get(chip)


def make_room(
    name: str,
    num_ranks: int,
    *,
    total_bytes: int,
    free_bytes: int,
    gpu_limit_bytes: int | None,
    num_ranks_there: int | None = None,
    speed: float = 1.0,
    bandwidth: float | None = None,
    has_gpu: bool = False,
) -> HostRoom:
    """One place in the ring; a machine's ranks share its memory and its speed.

    Args:
        gpu_limit_bytes: of a Mac. It counts instead of free memory: macOS drops caches and compresses other
            programs' memory when the GPU needs it.
    """
    num_ranks_there = num_ranks_there or num_ranks
    usable = free_bytes if gpu_limit_bytes is None else gpu_limit_bytes
    part = (usable - RANK_BYTES * num_ranks_there) * num_ranks // num_ranks_there
    return HostRoom(
        name, num_ranks, total_bytes, free_bytes, part, speed / num_ranks_there, has_gpu, bandwidth
    )


def mac_gpu_bytes(total_bytes: int) -> int:
    """What the GPU of a Mac may use by default."""
    return total_bytes * 2 // 3 if total_bytes <= MAX_SMALL_MAC_BYTES else total_bytes * 3 // 4
