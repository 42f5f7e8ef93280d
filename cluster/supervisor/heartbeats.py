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

from cluster.hosts.hosts import Host
from cluster.log_files import LineBuffer
from cluster.processes import ProcessIdentity, read_identity
from cluster.supervisor.child import Child
from cluster.supervisor.epoch_plan import EpochPlan

logger = logging.getLogger(__name__)


# What a rank does in a phase that has a limit, and the setting of that limit.
LIMITED_PHASES = {
    "starting": ("start", "CONNECT_TIMEOUT"),
    "connecting": ("connect", "CONNECT_TIMEOUT"),
    "loading": ("load its layers", "LOAD_TIMEOUT"),
    "warming": ("run its first steps", "LOAD_TIMEOUT"),
}

PHASES_WITH_PROGRESS = ("loading", "warming")


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

    def find_stall(self, plan: EpochPlan, now: float) -> str | None:
        """Why this rank is stuck by the limits of the plan; None if it is not."""
        silent_s, phase_s = now - self.last_heartbeat_at, now - self.phase_since
        if self._owes_heartbeats and silent_s > plan.heartbeat_limit_s:
            return (
                f"{self.title} sent no heartbeat for {silent_s:.0f} s (phase {self.phase}, step {self.step})"
            )
        limit_s = self._phase_limit_s(plan)
        if phase_s <= limit_s:
            return None
        what, key = LIMITED_PHASES[self.phase]
        return f"{self.title} did not {what} within {key}={limit_s:g} s"

    def _phase_limit_s(self, plan: EpochPlan) -> float:
        if self.phase not in LIMITED_PHASES:
            return float("inf")
        _, key = LIMITED_PHASES[self.phase]
        return plan.load_limit_s if key == "LOAD_TIMEOUT" else plan.connect_limit_s

    @property
    def _owes_heartbeats(self) -> bool:
        """Not while it connects: MLX holds the interpreter lock (mlx 0.32.4); CONNECT_TIMEOUT applies."""
        return self.num_heartbeats > 0 and self.phase != "connecting"

    def next_look(self, plan: EpochPlan) -> float:
        """When it would count as stuck without another heartbeat, on the monotonic clock."""
        of_phase = self.phase_since + self._phase_limit_s(plan)
        if not self._owes_heartbeats:
            return of_phase
        return min(of_phase, self.last_heartbeat_at + plan.heartbeat_limit_s)


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
