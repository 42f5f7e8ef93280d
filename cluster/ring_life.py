"""One life of the ring: its ranks from start to end, under one epoch.

A ring cannot be mended, so a life ends whole: the first rank that dies or falls silent ends it, and the
supervisor starts another with new ports. Knows the protocol of the pipes between a rank and us, and nothing
of what ranks compute:

    standard input   one line {"epoch", "rank", "hosts": ["127.0.0.1:5001", …], "secret", "settings": {…}},
                     then lines {"event": "settings", "values": {…}}; end of file there means: exit at once
    standard output  lines {"event": "heartbeat", "rank", "phase", "step", "progress": 0..1, "memory_bytes"},
                     once a second and at each change of phase; the phase is starting, connecting, loading,
                     ready or draining
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
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

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
# A heartbeat that is on its way when its time is up still counts.
LOOK_AFTER_S = 0.1
LISTEN_LOOK_S = 0.01

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
    settings: Mapping[str, Any] = field(default_factory=dict)  # the live ones, as they are now

    @property
    def ring_size(self) -> int:
        return len(self.hosts)


@dataclass(frozen=True)
class Verdict:
    """Why a life ended: `reason` in words, `process` that ended it, and whether another try is of any use."""

    reason: str
    process: str | None = None
    was_refused: bool = False
    was_killed: bool = False  # by a SIGKILL that was not ours


TakeSpare = Callable[[int, LineBuffer], Awaitable[Child | None]]


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
        if self._owes_heartbeats and silent_s > plan.heartbeat_limit_s:
            return (
                f"{self.name} sent no heartbeat for {silent_s:.0f} s (phase {self.phase}, step {self.step})"
            )
        if self.phase == "starting" and phase_s > plan.connect_limit_s:
            return f"{self.name} did not start within CONNECT_TIMEOUT={plan.connect_limit_s:g} s"
        if self.phase == "connecting" and phase_s > plan.connect_limit_s:
            return f"{self.name} did not connect within CONNECT_TIMEOUT={plan.connect_limit_s:g} s"
        if self.phase == "loading" and phase_s > plan.load_limit_s:
            return f"{self.name} did not load its layers within LOAD_TIMEOUT={plan.load_limit_s:g} s"
        return None

    @property
    def _owes_heartbeats(self) -> bool:
        """Not while it connects: MLX holds the interpreter lock then (mlx 0.32.4); CONNECT_TIMEOUT counts."""
        return self.num_heartbeats > 0 and self.phase != "connecting"

    def next_look(self, plan: LifePlan) -> float:
        """When it will count as stuck if it says nothing more, on the monotonic clock."""
        limits = {
            "starting": plan.connect_limit_s,
            "connecting": plan.connect_limit_s,
            "loading": plan.load_limit_s,
        }
        of_phase = self.phase_since + limits.get(self.phase, float("inf"))
        if not self._owes_heartbeats:
            return of_phase
        return min(of_phase, self.last_heartbeat_at + plan.heartbeat_limit_s)


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
        self,
        plan: LifePlan,
        log_of: Callable[[str], RotatingFile],
        on_change: Callable[[], None],
        take_spare: TakeSpare,
    ) -> None:
        self._take_spare = take_spare
        self._starting: asyncio.Task[None] | None = None
        self.plan = plan
        self._log_of = log_of
        self._on_change = on_change
        now = time.monotonic()
        self.ranks = [Rank(rank, now) for rank in range(plan.ring_size)]

    @property
    def is_ready(self) -> bool:
        """Every rank says ready, which it does after the HELLO lap with its layers loaded."""
        return all(rank.phase == "ready" and is_running(rank.child) for rank in self.ranks)

    @property
    def made_progress(self) -> bool:
        """It did work, or stood ready long enough that its end is a new trouble."""
        now = time.monotonic()
        head = self.ranks[0]  # is ready last
        return head.first_ready_step is not None and (
            head.step > head.first_ready_step or now - head.phase_since > PROGRESS_READY_S
        )

    async def start(self) -> None:
        """Start all ranks; the last one gets its start line when rank 0 listens.

        It connects to rank 0 before it does anything else, and where nobody listens yet, it tries again only
        a second later (mlx 0.32.4 distributed/ring). The others listen first and connect then.
        """
        for rank in self.ranks:
            reader = HeartbeatReader(rank, self._on_change)
            rank.child = await self._take_spare(rank.rank, reader) or await self._start_cold(rank, reader)
            if rank.rank < self.plan.ring_size - 1 or rank.rank == 0:
                await rank.child.write_line(self._first_line(rank.rank))
            self._on_change()
        if self.plan.ring_size > 1:
            self._starting = asyncio.create_task(self._start_last())

    async def _start_last(self) -> None:
        head, last = self.ranks[0].child, self.ranks[-1].child
        assert head is not None
        assert last is not None
        port = int(self.plan.hosts[0].rpartition(":")[2])
        # Nothing tells when MLX listens, and a connection to try it would be taken for the neighbour's.
        while head.exit_code is None and not is_listening(head.identity.pid, port):  # noqa: ASYNC110 - so we look
            await asyncio.sleep(LISTEN_LOOK_S)
        await last.write_line(self._first_line(self.plan.ring_size - 1))

    async def _start_cold(self, rank: Rank, reader: HeartbeatReader) -> Child:
        plan = ChildPlan(
            name=rank.name,
            command=[*self.plan.command, "--rank", str(rank.rank)],
            folder=self.plan.folder,
            environment=self.plan.environment,
        )
        return await start_child(plan, self._log_of(rank.name), reader)

    async def wait_for_failure(self) -> Verdict:
        """Wait until a rank ends or is stuck, and say which. Waits for ever while all goes well."""
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
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)
        await asyncio.gather(*(child.end(END_GRACE_S) for child in self._children()))

    async def send_settings(self, values: Mapping[str, Any]) -> None:
        """Tell every rank the new values of live settings."""
        line = json.dumps({"event": "settings", "values": dict(values)})
        await asyncio.gather(*(child.write_line(line) for child in self._children()))

    def abandon(self) -> None:
        """Tell every rank to go now, in the middle of a drain; returns at once."""
        for child in self._children():
            child.close_stdin()

    def _children(self) -> list[Child]:
        return [rank.child for rank in self.ranks if rank.child is not None]

    def _first_line(self, rank: int) -> str:
        plan = self.plan
        line = {"epoch": plan.epoch, "rank": rank, "hosts": list(plan.hosts), "secret": plan.secret}
        return json.dumps({**line, "settings": dict(plan.settings)})

    async def _watch_heartbeats(self) -> Verdict:
        while True:
            now = time.monotonic()
            looks = [rank.next_look(self.plan) for rank in self.ranks]
            due = min(*looks, now + self.plan.heartbeat_limit_s) + LOOK_AFTER_S
            await asyncio.sleep(max(0.0, due - now))
            now = time.monotonic()
            if now > due + 1.0:
                # It was us who were stopped: what the ranks said meanwhile is still in the pipes.
                for rank in self.ranks:
                    rank.last_heartbeat_at = now
            # Who has not even started keeps the others from connecting.
            for rank in sorted(self.ranks, key=lambda rank: rank.phase != "starting"):
                if reason := rank.find_stall(self.plan, now):
                    return Verdict(reason, rank.name)

    async def _name_culprit(self, exits: list[asyncio.Task[int]]) -> Verdict:
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
        if code == EXIT_RING_LOST and (missing := self._find_missing()):
            return missing
        reason = f"{culprit.name} {describe_exit(code)}"
        last_lines = culprit.log.last_lines
        if code > 0 and last_lines:
            reason += f": {last_lines[-1]}"
        return Verdict(reason, culprit.name, code == EXIT_REFUSED, code == -signal.SIGKILL)

    def _find_missing(self) -> Verdict | None:
        """A rank that never came as far as connecting, for which its neighbours gave up."""
        for rank in self.ranks:
            if rank.phase == "starting" and is_running(rank.child):
                seconds = time.monotonic() - rank.phase_since
                return Verdict(f"{rank.name} did not start within {seconds:.0f} s", rank.name)
        return None


def is_listening(pid: int, port: int) -> bool:
    """True if this process of ours listens on that port."""
    try:
        connections = psutil.Process(pid).net_connections("tcp")
    except psutil.Error:
        return False
    return any(one.status == psutil.CONN_LISTEN and one.laddr.port == port for one in connections)


def is_running(child: Child | None) -> bool:
    """True for a process that was started and has not ended."""
    return child is not None and child.exit_code is None
