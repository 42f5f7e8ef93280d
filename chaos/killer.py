"""The killer: seeded victims and moments, SIGKILL, and only ever processes of its own service.

Kills by pid and start time, as the status file of its own STATE_DIR names them. After a supervisor's death it
does what a user would: `start`.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cluster.service import read_service
from config import Settings

ROOT = Path(__file__).resolve().parent.parent
VICTIMS = ("rank 0", "other rank", "api", "supervisor")
WEIGHTS = (35, 35, 20, 10)
START_LIMIT_S = 300.0


@dataclass(frozen=True)
class Kill:
    """One shot; `state` is the service's at that moment."""

    at_unix: float
    victim: str
    pid: int
    state: str


class Killer:
    """Kills until told to stop; `kills` is what it did."""

    def __init__(
        self, settings: Settings, flags: Sequence[str], seed: int, pause_s: tuple[float, float]
    ) -> None:
        self._settings = settings
        self._flags = list(flags)
        self._random = random.Random(seed)
        self._pause_s = pause_s
        self.kills: list[Kill] = []
        self.num_failed_starts = 0

    def run(self, stopping: threading.Event, deadline: float) -> None:
        """Kill at random moments until the deadline."""
        while time.monotonic() < deadline and not stopping.wait(self._random.uniform(*self._pause_s)):
            kind = self._random.choices(VICTIMS, WEIGHTS)[0]
            self.shoot(kind, self._random.randrange(1, 1 << 16))

    def shoot(self, kind: str, number: int) -> None:
        """Kill one process of that kind, if one lives."""
        service = read_service(self._settings)
        if kind == "supervisor":
            victim, name = service.holder, "supervisor"
        else:
            others = max(1, self._settings.local_ranks - 1)
            name = f"rank {1 + number % others}" if kind == "other rank" else kind
            victim = service.processes.get(name)
        if victim is None or not victim.is_alive():
            return
        state = service.state
        if not victim.send(signal.SIGKILL):
            return
        self.kills.append(Kill(time.time(), name, victim.pid, state))
        if name == "supervisor":
            victim.wait(10.0)
            self.start()

    def start(self) -> None:
        """Start the service, twice if need be."""
        for _ in range(2):
            command = [sys.executable, "-m", "cluster", "start", *self._flags]
            ended = subprocess.run(
                command, cwd=ROOT, capture_output=True, text=True, timeout=START_LIMIT_S, check=False
            )
            if ended.returncode == 0:
                return
            self.num_failed_starts += 1
            print(f"start failed: {(ended.stdout + ended.stderr)[-600:]}", flush=True)

    def to_json(self) -> list[dict[str, Any]]:
        """The kills as data."""
        return [asdict(kill) for kill in self.kills]
