"""What a rank reports on its standard output, and its state as the supervisor knows it.

    {"event": "started", "pid", "start_time"}       first, before the rank reads its start line
    {"event": "heartbeat", "rank", "phase", "step", "progress": 0..1, "memory_bytes"}
                                                    once a second and at each change of phase; the phase is
                                                    starting, connecting, loading, ready or draining

Finds a stuck rank by limits it is given. Starts and ends no process.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from typing import Protocol

from cluster.hosts.hosts import Host
from cluster.log_files import LineBuffer
from cluster.processes import ProcessIdentity, read_identity
from cluster.supervisor.child import Child

logger = logging.getLogger(__name__)


class Limits(Protocol):
    """How long a rank may take."""

    @property
    def connect_limit_s(self) -> float: ...

    @property
    def load_limit_s(self) -> float: ...

    @property
    def heartbeat_limit_s(self) -> float: ...


class Rank:
    """One rank as the supervisor knows it: its process and its last heartbeat."""

    def __init__(self, rank: int, now: float, host: Host | None = None) -> None:
        self.rank = rank
        self.host = host  # None: this machine
        self.child: Child | None = None
        self.has_start_line = False
        self.process_there: ProcessIdentity | None = None  # the rank's own, where the child is ssh
        self.phase = "starting"
        self.step = 0
        self.progress = 0.0
        self.memory_bytes = 0
        self.num_heartbeats = 0
        self.last_heartbeat_at = now
        self.phase_since = now
        self.first_ready_step: int | None = None

    @property
    def name(self) -> str:
        return f"rank {self.rank}"

    @property
    def title(self) -> str:
        """The name for people: with its host, if that is another machine."""
        return f"{self.name} on {self.host.name}" if self.host and not self.host.is_local else self.name

    def take(self, line: str, now: float) -> bool:
        """Take one line of its standard output; True if phase or progress changed."""
        try:
            beat = json.loads(line)
            if beat.get("event") == "started":
                self.process_there = read_identity(beat)
                return True
            if beat.get("event") != "heartbeat":
                return False
            phase, progress = str(beat["phase"]), float(beat.get("progress", 0.0))
            step, memory_bytes = int(beat.get("step", 0)), int(beat.get("memory_bytes", 0))
        except (ValueError, TypeError, KeyError, AttributeError):
            logger.warning("%s wrote a line that is no heartbeat (%d characters)", self.name, len(line))
            return False
        is_change = (phase, round(progress, 2)) != (self.phase, round(self.progress, 2))
        if phase != self.phase:
            self.phase_since = now
        self.phase, self.progress, self.step, self.memory_bytes = phase, progress, step, memory_bytes
        self.num_heartbeats += 1
        self.last_heartbeat_at = now
        if phase == "ready" and self.first_ready_step is None:
            self.first_ready_step = step
        return is_change

    def find_stall(self, limits: Limits, now: float) -> str | None:
        """Why this rank is stuck; None if it is not."""
        silent_s, phase_s = now - self.last_heartbeat_at, now - self.phase_since
        if self._owes_heartbeats and silent_s > limits.heartbeat_limit_s:
            return (
                f"{self.title} sent no heartbeat for {silent_s:.0f} s (phase {self.phase}, step {self.step})"
            )
        if self.phase == "starting" and phase_s > limits.connect_limit_s:
            return f"{self.title} did not start within CONNECT_TIMEOUT={limits.connect_limit_s:g} s"
        if self.phase == "connecting" and phase_s > limits.connect_limit_s:
            return f"{self.title} did not connect within CONNECT_TIMEOUT={limits.connect_limit_s:g} s"
        if self.phase == "loading" and phase_s > limits.load_limit_s:
            return f"{self.title} did not load its layers within LOAD_TIMEOUT={limits.load_limit_s:g} s"
        return None

    @property
    def _owes_heartbeats(self) -> bool:
        """Not while it connects: MLX holds the interpreter lock (mlx 0.32.4); CONNECT_TIMEOUT applies."""
        return self.num_heartbeats > 0 and self.phase != "connecting"

    def next_look(self, limits: Limits) -> float:
        """When it would count as stuck without another heartbeat, on the monotonic clock."""
        of_phases = {
            "starting": limits.connect_limit_s,
            "connecting": limits.connect_limit_s,
            "loading": limits.load_limit_s,
        }
        of_phase = self.phase_since + of_phases.get(self.phase, float("inf"))
        if not self._owes_heartbeats:
            return of_phase
        return min(of_phase, self.last_heartbeat_at + limits.heartbeat_limit_s)


class HeartbeatReader(LineBuffer):
    """Reads a rank's standard output into its `Rank`."""

    def __init__(self, rank: Rank, on_change: Callable[[], None]) -> None:
        super().__init__()
        self._rank = rank
        self._on_change = on_change

    def put_line(self, line: str) -> None:
        """Take one line; report a change of phase or progress."""
        if self._rank.take(line, time.monotonic()):
            self._on_change()
