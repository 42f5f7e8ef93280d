"""The ring's status for the front door and `status`: run/ring.json, replaced at each phase and once a second.

Knows numbers and one file; nothing of MLX.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Sequence as Items
from pathlib import Path
from typing import Any

from config.context_length import ContextLength
from config.disk_trouble import DiskTroubles
from config.run_files import write_status
from distributed.engine.step_trace import StepTrace
from distributed.ring.handshake import RankInfo

BUSY_WINDOW_SECONDS = 10.0


class BusyMeter:
    """The share of the last ten seconds that each rank spent computing."""

    def __init__(self, num_ranks: int) -> None:
        self.busy_us = [0] * num_ranks
        self.num_steps = 0
        self._marks: deque[tuple[float, list[int]]] = deque([(time.monotonic(), [0] * num_ranks)])

    def add(self, busy_us: Items[int]) -> None:
        self.num_steps += 1
        for rank, us in enumerate(busy_us):
            self.busy_us[rank] += us

    def ratios(self) -> list[float]:
        """Return each rank's share, 0 to 1, of the time since about BUSY_WINDOW_SECONDS ago."""
        now = time.monotonic()
        while len(self._marks) > 1 and now - self._marks[1][0] >= BUSY_WINDOW_SECONDS:
            self._marks.popleft()
        since, then = self._marks[0]
        self._marks.append((now, list(self.busy_us)))
        elapsed_us = max(now - since, 1e-3) * 1e6
        pairs = zip(self.busy_us, then, strict=True)
        return [round(min(1.0, (busy - before) / elapsed_us), 4) for busy, before in pairs]


class RingStatus:
    """Counts this epoch's work and publishes it."""

    def __init__(
        self, path: Path, *, epoch: int, ring_size: int, model: str, settings: dict[str, Any]
    ) -> None:
        self._path = path
        self._fixed = {
            "epoch": epoch,
            "ring_size": ring_size,
            "model": model,
            "pid": os.getpid(),
            "started_unix": time.time(),
            "settings": settings,
        }
        self.model = model
        self.context: ContextLength | None = None  # set once all ranks have loaded
        self.phase = "connecting"
        self.reason: str | None = None
        self.ranks: tuple[RankInfo, ...] = ()
        self.busy = BusyMeter(ring_size)
        self.troubles = DiskTroubles()
        self.trace = StepTrace(path.parent, epoch, ring_size, self.troubles)
        self.step = 0
        self.last_lap_unix: float | None = None
        self.tokens = {"prompt_tokens": 0, "generation_tokens": 0, "cached_tokens": 0}
        self.requests = {"stop": 0, "length": 0, "cancelled": 0, "error": 0}
        self.owners: dict[str, dict[str, int]] = {}  # requests and tokens by API key
        self.results: dict[str, int] = {}
        self.queue: dict[str, Any] = {"num_waiting": 0, "num_running": 0, "oldest_wait_s": 0.0}
        self.kv: dict[str, Any] = {"max_tokens": 0, "num_tokens": 0}

    def enter(self, phase: str, reason: str | None = None) -> None:
        """Change the phase and publish it at once."""
        self.phase, self.reason = phase, reason
        self.publish()

    def publish(self) -> None:
        """Write the file; if the disk refuses, note the trouble and go on."""
        self.trace.tick(self.ranks)
        with self.troubles.guard(self._path.name):
            write_status(self._path, self._describe())

    def _describe(self) -> dict[str, Any]:
        return {
            **self._fixed,
            "updated_unix": time.time(),
            "phase": self.phase,
            "reason": self.reason,
            "step": self.step,
            "last_lap_unix": self.last_lap_unix,
            "ranks": self._rank_lines(),
            "queue": self.queue,
            "kv": self.kv,
            "context": vars(self.context) if self.context else None,
            "results": self.results,
            "owners": self.owners,  # apart from the totals, which /health shows to everyone
            "totals": {**self.tokens, "requests": self.requests},
            "troubles": self.troubles.sentences(self._path.name),
        }

    def _rank_lines(self) -> list[dict[str, Any]]:
        ratios = self.busy.ratios()
        return [
            {**vars(info), "busy_ratio": ratios[info.rank], "num_steps": self.busy.num_steps}
            for info in self.ranks
        ]
