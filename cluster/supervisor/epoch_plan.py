"""The plan of one epoch: which rank runs where, on which port, with which command, limits and start line.

Data only. `EpochMaker` makes a plan (epoch_maker.py), `RingEpoch` runs it (ring_epoch.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.hosts.hosts import Host
from cluster.hosts.remote_ranks import PING_LIMIT_S
from cluster.hosts.worker_setup import Worker

HEARTBEAT_LIMIT_S = 10.0


@dataclass(frozen=True)
class RankPlace:
    """Where a rank runs: on this machine without `worker`; rank 0 names the folder without `model_folder`."""

    host: Host
    worker: Worker | None = None
    command: Sequence[str] = ()  # of a rank on another host, with all of its flags
    model_folder: str | None = None


@dataclass(frozen=True)
class EpochPlan:
    """One epoch of the ring. `command` starts a rank of this machine, with `--rank R` added."""

    epoch: int
    hosts: tuple[str, ...]  # "address:port" by rank
    secret: str
    command: Sequence[str]
    folder: Path
    environment: Mapping[str, str]
    connect_limit_s: float
    load_limit_s: float
    heartbeat_limit_s: float = HEARTBEAT_LIMIT_S
    places: tuple[RankPlace, ...] = ()  # by rank; empty: all ranks run on this machine
    layers: Sequence[int] | None = None  # by rank, as the files were placed; None: rank 0 plans
    dequantize: bool | None = None  # what that plan assumed

    @property
    def ring_size(self) -> int:
        return len(self.hosts)

    @property
    def has_remote(self) -> bool:
        """Some rank runs on another host."""
        return any(place.worker for place in self.places)

    def place_of(self, rank: int) -> RankPlace | None:
        """Where a rank runs, in a ring over several hosts."""
        return self.places[rank] if self.places else None

    def make_start_line(self, rank: int) -> str:
        """The first line on a rank's standard input (distributed/ring/watchdog.py)."""
        line: dict[str, Any] = {
            "epoch": self.epoch,
            "rank": rank,
            "hosts": list(self.hosts),
            "secret": self.secret,
        }
        if self.layers is not None:
            line |= {"layers": list(self.layers), "dequantize": self.dequantize}
        if place := self.place_of(rank):
            line["host_name"] = place.host.name
            line |= {"model_folder": place.model_folder} if place.model_folder else {}
            line |= {"ping_limit_s": PING_LIMIT_S} if place.worker else {}
        return json.dumps(line)
