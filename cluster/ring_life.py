"""One life of the ring: its ranks from start to end, under one epoch.

A ring cannot be mended, so a life ends whole: the first rank that dies or falls silent ends it, and the
supervisor starts another with new ports. Knows the protocol of the pipes between a rank and us, and nothing
of what ranks compute:

    standard input   one line {"epoch", "rank", "hosts": ["127.0.0.1:5001", …], "secret"}, then open; end of
                     file there means: exit at once
    standard output  lines {"event": "heartbeat", "rank", "phase": "connecting|loading|ready|draining",
                     "step", "progress": 0..1, "memory_bytes"}, once a second and at each change of phase
    standard error   its log
    exit codes       0 drained, 2 refused (again is no use), 3 ring lost, 4 watchdog, 5 we are gone
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.child import Child, ChildPlan, describe_exit, start_child
from cluster.log_files import LineBuffer
from config.rotating_file import RotatingFile

EXIT_REFUSED = 2
EXIT_RING_LOST = 3
HEARTBEAT_LIMIT_S = 10.0
END_GRACE_S = 0.5
# A neighbour notices a dead rank within tens of milliseconds and exits too: who was first is asked later.
CULPRIT_WAIT_S = 0.3
PROGRESS_READY_S = 60.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LifePlan:
    """What one life is made of; `command` gets `--rank R` added."""

    epoch: int
    hosts: tuple[str, ...]  # "address:port" by rank
    secret: str
    command: Sequence[str]
    folder: Path
    environment: Mapping[str, str]
    connect_limit_s: float
    load_limit_s: float
    heartbeat_limit_s: float = HEARTBEAT_LIMIT_S

    @property
    def ring_size(self) -> int:
        return len(self.hosts)


class Rank:
    """What is known of one rank: its process and its last heartbeat."""

    def __init__(self, rank: int, now: float) -> None:
        self.rank = rank
        self.child: Child | None = None
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

    def take(self, line: str, now: float) -> bool:
        """Take one line of its standard output; True if a heartbeat with another phase or progress."""
        try:
            beat = json.loads(line)
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

    def find_stall(self, plan: LifePlan, now: float) -> str | None:
        """Why this rank counts as stuck, if it does."""
        silent_s, phase_s = now - self.last_heartbeat_at, now - self.phase_since
        if self.num_heartbeats and silent_s > plan.heartbeat_limit_s:
            return (
                f"{self.name} sent no heartbeat for {silent_s:.0f} s (phase {self.phase}, step {self.step})"
            )
        if self.phase in ("starting", "connecting") and phase_s > plan.connect_limit_s:
            return f"{self.name} did not connect within CONNECT_TIMEOUT={plan.connect_limit_s:g} s"
        if self.phase == "loading" and phase_s > plan.load_limit_s:
            return f"{self.name} did not load its layers within LOAD_TIMEOUT={plan.load_limit_s:g} s"
        return None


class HeartbeatReader(LineBuffer):
    """A rank's standard output: hands its heartbeats to what is known of it."""

    def __init__(self, rank: Rank, on_change: Callable[[], None]) -> None:
        super().__init__()
        self._rank = rank
        self._on_change = on_change

    def put_line(self, line: str) -> None:
        """Take one line; tell of another phase or progress."""
        if self._rank.take(line, time.monotonic()):
            self._on_change()


class RingLife:
    """The ranks of one epoch; `start` once, then `wait_for_failure`, then `drain` or `end`."""

    def __init__(
        self, plan: LifePlan, log_of: Callable[[str], RotatingFile], on_change: Callable[[], None]
    ) -> None:
        self.plan = plan
        self._log_of = log_of
        self._on_change = on_change
        now = time.monotonic()
        self.ranks = [Rank(rank, now) for rank in range(plan.ring_size)]
        self.failed_process: str | None = None
        self.was_refused = False

    @property
    def is_ready(self) -> bool:
        """Every rank says ready, which it does after the HELLO lap with its layers loaded."""
        return all(rank.phase == "ready" and is_running(rank.child) for rank in self.ranks)

    @property
    def made_progress(self) -> bool:
        """It did work, or stood ready long enough that its end is a new trouble."""
        now = time.monotonic()
        return any(
            rank.first_ready_step is not None
            and (rank.step > rank.first_ready_step or now - rank.phase_since > PROGRESS_READY_S)
            for rank in self.ranks
        )

    async def start(self) -> None:
        """Start ranks N-1 … 0: rank 0 connects to N-1, which listens by then."""
        for rank in reversed(self.ranks):
            plan = ChildPlan(
                name=rank.name,
                command=[*self.plan.command, "--rank", str(rank.rank)],
                folder=self.plan.folder,
                environment=self.plan.environment,
                first_line=self._first_line(rank.rank),
            )
            rank.child = await start_child(
                plan, self._log_of(rank.name), HeartbeatReader(rank, self._on_change)
            )
            self._on_change()

    async def wait_for_failure(self) -> str:
        """Wait until a rank ends or is stuck; the reason in words. Waits for ever while all goes well."""
        exits = [asyncio.create_task(child.wait()) for child in self._children()]
        stall = asyncio.create_task(self._watch_heartbeats())
        try:
            await asyncio.wait([*exits, stall], return_when=asyncio.FIRST_COMPLETED)
            if stall.done():
                return stall.result()
            return await self._name_culprit(exits)
        finally:
            for task in (*exits, stall):
                task.cancel()
            await asyncio.gather(*exits, stall, return_exceptions=True)

    async def drain(self, limit_s: float) -> bool:
        """Let rank 0 finish what runs and stop the ring; True if every rank left by itself in time."""
        head = self.ranks[0].child
        if head is None or not self.is_ready:
            await self.end()
            return False
        head.send(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await asyncio.gather(*(child.wait() for child in self._children()))
        is_clean = all(child.exit_code is not None for child in self._children())
        await self.end()
        return is_clean

    async def end(self) -> None:
        """End every rank at once, by SIGKILL where end of file is not enough."""
        await asyncio.gather(*(child.end(END_GRACE_S) for child in self._children()))

    def abandon(self) -> None:
        """Tell every rank to go now, in the middle of a drain; returns at once."""
        for child in self._children():
            child.close_stdin()

    def _children(self) -> list[Child]:
        return [rank.child for rank in self.ranks if rank.child is not None]

    def _first_line(self, rank: int) -> str:
        plan = self.plan
        return json.dumps(
            {"epoch": plan.epoch, "rank": rank, "hosts": list(plan.hosts), "secret": plan.secret}
        )

    async def _watch_heartbeats(self) -> str:
        interval_s = self.plan.heartbeat_limit_s / 2
        while True:
            due = time.monotonic() + interval_s
            await asyncio.sleep(interval_s)
            now = time.monotonic()
            if now > due + 1.0:
                # It was us who were stopped: what the ranks said meanwhile is still in the pipes.
                for rank in self.ranks:
                    rank.last_heartbeat_at = now
            for rank in self.ranks:
                if reason := rank.find_stall(self.plan, now):
                    self.failed_process = rank.name
                    return reason

    async def _name_culprit(self, exits: list[asyncio.Task[int]]) -> str:
        """The rank whose end ended the others, which exit with `ring lost`."""

        def ended() -> list[Child]:
            return [child for child in self._children() if child.exit_code is not None]

        deadline = time.monotonic() + CULPRIT_WAIT_S
        pending = {task for task in exits if not task.done()}
        while pending and all(child.exit_code == EXIT_RING_LOST for child in ended()):
            left_s = deadline - time.monotonic()
            done, pending = await asyncio.wait(
                pending, timeout=max(0.0, left_s), return_when=asyncio.FIRST_COMPLETED
            )
            if not done:
                break
        culprit = min(ended(), key=lambda child: child.exit_code == EXIT_RING_LOST)
        code = culprit.exit_code
        assert code is not None
        self.failed_process = culprit.name
        self.was_refused = code == EXIT_REFUSED
        reason = f"{culprit.name} {describe_exit(code)}"
        last_lines = culprit.log.last_lines
        return f"{reason}: {last_lines[-1]}" if code > 0 and last_lines else reason


def is_running(child: Child | None) -> bool:
    """True for a process that was started and has not ended."""
    return child is not None and child.exit_code is None
