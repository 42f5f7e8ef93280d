"""One epoch of the ring: its ranks from start to end.

A ring cannot be repaired, so an epoch ends whole: the first rank that dies or falls silent ends it, and the
supervisor starts the next epoch on new ports. Knows the pipes between a rank and the supervisor, and nothing
of what ranks compute:

    standard input   first the start line (epoch_plan.py), then lines {"event": "settings", "values": {…}};
                     on another host also {"event": "ping"} once a second, before the start line too; at end
                     of file the rank exits at once
    standard output  heartbeats (heartbeats.py)
    standard error   the rank's log
    exit codes       0 drained, 2 refused (another try does not help), 3 ring lost, 4 watchdog, 5 supervisor
                     gone, 6 the disk refused; for a rank on another host also 255: ssh lost the connection
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import psutil

from cluster.errors import ClusterError
from cluster.hosts.remote_ranks import end_processes
from cluster.processes import PSUTIL_ERRORS
from cluster.supervisor.child import Child, ChildPlan, describe_exit, start_child
from cluster.supervisor.epoch_plan import EpochPlan
from cluster.supervisor.heartbeats import HeartbeatReader, Rank
from cluster.supervisor.tasks import cancel
from config.rotating_file import RotatingFile

PING_LINE = json.dumps({"event": "ping"})
EXIT_REFUSED = 2
EXIT_RING_LOST = 3
EXIT_DISK_REFUSED = 6
END_GRACE_S = 0.5
# A neighbour notices a dead rank within tens of milliseconds and exits too; then we look who was first.
CULPRIT_WAIT_S = 0.3
REMOTE_CULPRIT_WAIT_S = 1.0
# A rank that is not reached by then is ended before the next epoch begins on that host.
KILL_THERE_LIMIT_S = 5.0
PROGRESS_READY_S = 60.0
# A heartbeat in the pipe at its limit still counts.
LOOK_AFTER_S = 0.1
LISTEN_LOOK_S = 0.01
# A rank listens soon after it reports the phase connecting.
LISTEN_LIMIT_S = 3.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Verdict:
    """Why an epoch ended: the reason in words, the process that ended it, and how to count the failure."""

    reason: str
    process: str | None = None
    was_refused: bool = False
    was_killed: bool = False  # by a SIGKILL that was not ours
    made_progress: bool = False  # before it ended
    # Another host did not answer, or the disk refused: retried without limit.
    is_away: bool = False
    is_unconnected: bool = False  # ranks on several hosts did not connect to each other


class RingEpoch:
    """The ranks of one epoch; `start` once, then `wait_for_failure`, then `drain` or `end`."""

    def __init__(
        self,
        plan: EpochPlan,
        log_of: Callable[[str], RotatingFile],
        on_change: Callable[[], None],
    ) -> None:
        self.plan = plan
        self._log_of = log_of
        self._on_change = on_change
        self._starting: asyncio.Task[None] | None = None
        self._edited: dict[str, Any] = {}  # live settings that changed in this epoch
        now = time.monotonic()
        places = [plan.place_of(rank) for rank in range(plan.ring_size)]
        self.ranks = [Rank(rank, now, place.host if place else None) for rank, place in enumerate(places)]

    @property
    def is_ready(self) -> bool:
        """Every rank reports ready, which it does after the HELLO lap with its layers loaded."""
        return all(rank.phase == "ready" and is_running(rank.child) for rank in self.ranks)

    @property
    def made_progress(self) -> bool:
        """It ran steps, or was ready long enough that its end counts as a new failure."""
        now = time.monotonic()
        head = self.ranks[0]  # the last to become ready
        return head.first_ready_step is not None and (
            head.step > head.first_ready_step or now - head.phase_since > PROGRESS_READY_S
        )

    async def start(self) -> None:
        """Start all ranks; the last one gets its start line when rank 0 listens.

        The last rank connects to rank 0 first of all, and retries only after a second (mlx 0.32.4
        distributed/ring). The others listen first and then connect: rank 0 to rank 1 when the last one has
        connected, and so on. On other hosts we cannot see who listens, so we wait until each rank there has
        reported the phase connecting.
        """
        for rank in self.ranks:
            rank.child = await self._start_rank(rank)
            rank.child.kill_there = self._make_kill_there(rank)
            if rank.rank < self.plan.ring_size - 1 or rank.rank == 0:
                await self._send_start_line(rank)
            self._on_change()
        if self.plan.ring_size > 1:
            self._starting = asyncio.create_task(self._start_last())

    async def _send_start_line(self, rank: Rank) -> None:
        """Send the start line, and behind it what `send_settings` held back until now."""
        assert rank.child is not None
        await rank.child.write_line(self.plan.make_start_line(rank.rank))
        rank.has_start_line = True
        if self._edited:
            await rank.child.write_line(make_settings_line(self._edited))

    async def _start_last(self) -> None:
        head = self.ranks[0].child
        assert head is not None
        port = int(self.plan.hosts[0].rpartition(":")[2])
        middle = [rank for rank in self.ranks[1:-1] if rank.child and rank.child.plan.is_remote]

        def has_to_wait() -> bool:
            is_early = any(rank.phase == "starting" for rank in middle)
            return head.exit_code is None and (is_early or self._head_is_deaf(head.identity.pid, port))

        # MLX does not report that it listens, and would take a test connection for the neighbour's.
        while has_to_wait():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(LISTEN_LOOK_S)
        await self._send_start_line(self.ranks[-1])

    def _head_is_deaf(self, pid: int, port: int) -> bool:
        """Rank 0 does not listen yet; where psutil cannot say, it has not been connecting long."""
        head = self.ranks[0]
        if head.phase != "starting" and time.monotonic() - head.phase_since > LISTEN_LIMIT_S:
            return False
        return not is_listening(pid, port)

    async def _start_rank(self, rank: Rank) -> Child:
        place = self.plan.place_of(rank.rank)
        is_remote = place is not None and place.worker is not None
        plan = ChildPlan(
            name=rank.name,
            command=place.command
            if place is not None and is_remote
            else [*self.plan.command, "--rank", str(rank.rank)],
            folder=self.plan.folder,
            environment=os.environ if is_remote else self.plan.environment,
            is_remote=is_remote,
        )
        return await start_child(plan, self._log_of(rank.name), HeartbeatReader(rank, self._on_change))

    def _make_kill_there(self, rank: Rank) -> Callable[[], Awaitable[None]] | None:
        place = self.plan.place_of(rank.rank)
        if place is None or place.worker is None:
            return None
        worker = place.worker

        async def kill_there() -> None:
            if rank.process_there is None:
                return
            try:
                async with asyncio.timeout(KILL_THERE_LIMIT_S):
                    await end_processes(worker, [rank.process_there])
            except (ClusterError, TimeoutError) as error:
                logger.warning("%s cannot be ended now: %s", rank.title, str(error) or "no answer")

        return kill_there

    async def wait_for_failure(self) -> Verdict:
        """Wait until a rank ends or is stuck; why, and which one. Without a failure it never returns."""
        exits = [asyncio.create_task(child.wait()) for child in self._children()]
        stall = asyncio.create_task(self._watch_heartbeats())
        try:
            await asyncio.wait([*exits, stall], return_when=asyncio.FIRST_COMPLETED)
            verdict = stall.result() if stall.done() else await self._name_culprit(exits)
            is_early = self.plan.has_remote and self.ranks[0].phase == "connecting"
            return replace(verdict, is_unconnected=is_early and not verdict.was_refused)
        finally:
            await cancel(*exits, stall)

    async def drain(self, limit_s: float) -> bool:
        """Let rank 0 finish its requests and stop the ring; True if every rank exited in time."""
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
        """End every rank now: end of file, then SIGKILL."""
        if self._starting is not None:
            await cancel(self._starting)
        await asyncio.gather(*(child.end(END_GRACE_S) for child in self._children()))

    async def send_settings(self, values: Mapping[str, Any]) -> None:
        """Send new values of live settings. A rank without its start line gets them right after that line."""
        self._edited |= values
        line = make_settings_line(values)
        started = [rank.child for rank in self.ranks if rank.child is not None and rank.has_start_line]
        await asyncio.gather(*(child.write_line(line) for child in started))

    def ping(self) -> None:
        """Show the ranks on other hosts that the supervisor lives."""
        for child in self._children():
            if child.plan.is_remote:
                child.write_soon(PING_LINE)

    def abandon(self) -> None:
        """Close every rank's standard input, also during a drain; does not wait."""
        for child in self._children():
            child.close_stdin()

    def _children(self) -> list[Child]:
        return [rank.child for rank in self.ranks if rank.child is not None]

    async def _watch_heartbeats(self) -> Verdict:
        while True:
            now = time.monotonic()
            looks = [rank.next_look(self.plan) for rank in self.ranks]
            due = min(*looks, now + self.plan.heartbeat_limit_s) + LOOK_AFTER_S
            await asyncio.sleep(max(0.0, due - now))
            now = time.monotonic()
            if now > due + 1.0:
                # The supervisor itself was stopped: heartbeats of that time are still in the pipes.
                for rank in self.ranks:
                    rank.last_heartbeat_at = now
            # A rank that has not started keeps the others from connecting: name it first.
            for rank in sorted(self.ranks, key=lambda rank: rank.phase != "starting"):
                if reason := rank.find_stall(self.plan, now):
                    return Verdict(reason, rank.name)

    async def _name_culprit(self, exits: list[asyncio.Task[int]]) -> Verdict:
        """The rank that ended first; its neighbours follow with `ring lost`."""

        def ended() -> list[Child]:
            return [child for child in self._children() if child.exit_code is not None]

        wait_s = REMOTE_CULPRIT_WAIT_S if self.plan.has_remote else CULPRIT_WAIT_S
        deadline = time.monotonic() + wait_s
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
        title = next(rank.title for rank in self.ranks if rank.child is culprit)
        said = f": {culprit.log.last_words}" if code > 0 and culprit.log.last_words else ""
        if culprit.has_lost_host:
            return Verdict(f"{title} was lost with the ssh connection{said}", culprit.name, is_away=True)
        return Verdict(
            f"{title} {describe_exit(code)}{said}",
            culprit.name,
            code == EXIT_REFUSED,
            code == -signal.SIGKILL,
            is_away=code == EXIT_DISK_REFUSED,
        )

    def _find_missing(self) -> Verdict | None:
        """A rank that never began to connect, so that its neighbours gave up."""
        for rank in self.ranks:
            if rank.phase == "starting" and is_running(rank.child):
                seconds = time.monotonic() - rank.phase_since
                return Verdict(f"{rank.title} did not start within {seconds:.0f} s", rank.name)
        return None


def make_settings_line(values: Mapping[str, Any]) -> str:
    """The line that carries new values of live settings (config/live.py reads it)."""
    return json.dumps({"event": "settings", "values": dict(values)})


def is_listening(pid: int, port: int) -> bool:
    """True if this child process listens on that port."""
    try:
        connections = psutil.Process(pid).net_connections("tcp")
    except PSUTIL_ERRORS:
        return False
    return any(one.status == psutil.CONN_LISTEN and one.laddr.port == port for one in connections)


def is_running(child: Child | None) -> bool:
    """True for a process that was started and has not ended."""
    return child is not None and child.exit_code is None
