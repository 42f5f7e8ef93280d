"""One life of the ring: its ranks from start to end, under one epoch.

A ring cannot be mended, so a life ends whole: the first rank that dies or falls silent ends it, and the
supervisor starts another with new ports. Knows the protocol of the pipes between a rank and us, and nothing
of what ranks compute:

    standard input   one line, the start line (distributed/ring/watchdog.py), then lines {"event": "settings",
                     "values": {…}}, and {"event": "ping"} once a second where it runs on another host; end of
                     file there means: exit at once
    standard output  what it says of itself (cluster/supervisor/heartbeats.py)
    standard error   its log
    exit codes       0 drained, 2 refused (again is no use), 3 ring lost, 4 watchdog, 5 we are gone, 6 the
                     disk refused; of a rank on another host also 255: ssh has lost it
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from cluster.errors import ClusterError
from cluster.hosts.hosts import Host
from cluster.hosts.remote_ranks import PING_LIMIT_S, end_processes
from cluster.hosts.workers import Worker
from cluster.processes import PSUTIL_ERRORS
from cluster.supervisor.child import Child, ChildPlan, describe_exit, start_child
from cluster.supervisor.heartbeats import HeartbeatReader, Rank
from config.rotating_file import RotatingFile

PING_LINE = json.dumps({"event": "ping"})
EXIT_REFUSED = 2
EXIT_RING_LOST = 3
EXIT_DISK_REFUSED = 6
HEARTBEAT_LIMIT_S = 10.0
END_GRACE_S = 0.5
# A neighbour notices a dead rank within tens of milliseconds and exits too: who was first is asked later.
CULPRIT_WAIT_S = 0.3
REMOTE_CULPRIT_WAIT_S = 1.0
# Whoever is not reached by then is ended before the next life begins on that host.
KILL_THERE_LIMIT_S = 5.0
PROGRESS_READY_S = 60.0
# A heartbeat that is on its way when its time is up still counts.
LOOK_AFTER_S = 0.1
LISTEN_LOOK_S = 0.01
# A rank that says it connects listens soon; the last one's first try costs a second where it does not.
LISTEN_LIMIT_S = 3.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RankPlace:
    """Where a rank runs; `worker` is None on this machine, `model_folder` None: the one that rank 0 names."""

    host: Host
    worker: Worker | None = None
    command: Sequence[str] = ()  # of a rank on another host, with all of its flags
    model_folder: str | None = None


@dataclass(frozen=True)
class EpochPlan:
    """What one life is made of; `command` gets `--rank R` added for the ranks of this machine."""

    epoch: int
    hosts: tuple[str, ...]  # "address:port" by rank
    secret: str
    command: Sequence[str]
    folder: Path
    environment: Mapping[str, str]
    connect_limit_s: float
    load_limit_s: float
    heartbeat_limit_s: float = HEARTBEAT_LIMIT_S
    places: tuple[RankPlace, ...] = ()  # by rank; none: all are on this machine
    layers: Sequence[int] | None = None  # by rank, as files were placed for it; None: rank 0 plans
    dequantize: bool | None = None  # what that plan counted with

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

    def make_first_line(self, rank: int) -> str:
        """The start line of a rank."""
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


@dataclass(frozen=True)
class Verdict:
    """Why a life ended: `reason` in words, `process` that ended it, and whether another try is of any use."""

    reason: str
    process: str | None = None
    was_refused: bool = False
    was_killed: bool = False  # by a SIGKILL that was not ours
    made_progress: bool = False  # before that
    # Another host did not answer, or the disk refused: nobody's failure, and tried for as long as it takes.
    is_away: bool = False
    is_unconnected: bool = False  # ranks on several hosts did not find each other


class RingEpoch:
    """The ranks of one epoch; `start` once, then `wait_for_failure`, then `drain` or `end`."""

    def __init__(
        self,
        plan: EpochPlan,
        log_of: Callable[[str], RotatingFile],
        on_change: Callable[[], None],
    ) -> None:
        self._starting: asyncio.Task[None] | None = None
        self.plan = plan
        self._log_of = log_of
        self._on_change = on_change
        now = time.monotonic()
        places = [plan.place_of(rank) for rank in range(plan.ring_size)]
        self.ranks = [Rank(rank, now, place.host if place else None) for rank, place in enumerate(places)]

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
        a second later (mlx 0.32.4 distributed/ring). The others listen first and connect then: rank 0 to rank
        1 when the last one has come, and so on. So of those on other hosts, where nobody can look who
        listens, each has said before that it is about to.
        """
        for rank in self.ranks:
            rank.child = await self._start_rank(rank)
            rank.child.kill_there = self._make_kill_there(rank)
            if rank.rank < self.plan.ring_size - 1 or rank.rank == 0:
                await rank.child.write_line(self.plan.make_first_line(rank.rank))
            self._on_change()
        if self.plan.ring_size > 1:
            self._starting = asyncio.create_task(self._start_last())

    async def _start_last(self) -> None:
        head, last = self.ranks[0].child, self.ranks[-1].child
        assert head is not None
        assert last is not None
        port = int(self.plan.hosts[0].rpartition(":")[2])
        middle = [rank for rank in self.ranks[1:-1] if rank.child and rank.child.plan.is_remote]

        def has_to_wait() -> bool:
            is_early = any(rank.phase == "starting" for rank in middle)
            return head.exit_code is None and (is_early or self._head_is_deaf(head.identity.pid, port))

        # Nothing tells when MLX listens, and a connection to try it would be taken for the neighbour's.
        while has_to_wait():  # noqa: ASYNC110 - so we look
            await asyncio.sleep(LISTEN_LOOK_S)
        await last.write_line(self.plan.make_first_line(self.plan.ring_size - 1))

    def _head_is_deaf(self, pid: int, port: int) -> bool:
        """Rank 0 does not listen yet. Where the system does not tell: it has not long been about to."""
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
        """Wait until a rank ends or is stuck, and say which. Waits for ever while all goes well."""
        exits = [asyncio.create_task(child.wait()) for child in self._children()]
        stall = asyncio.create_task(self._watch_heartbeats())
        try:
            await asyncio.wait([*exits, stall], return_when=asyncio.FIRST_COMPLETED)
            verdict = stall.result() if stall.done() else await self._name_culprit(exits)
            is_early = self.plan.has_remote and self.ranks[0].phase == "connecting"
            return replace(verdict, is_unconnected=is_early and not verdict.was_refused)
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

    def ping(self) -> None:
        """Tell the ranks on other hosts that we are there."""
        for child in self._children():
            if child.plan.is_remote:
                child.write_soon(PING_LINE)

    def abandon(self) -> None:
        """Tell every rank to go now, in the middle of a drain; returns at once."""
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
        """A rank that never came as far as connecting, for which its neighbours gave up."""
        for rank in self.ranks:
            if rank.phase == "starting" and is_running(rank.child):
                seconds = time.monotonic() - rank.phase_since
                return Verdict(f"{rank.title} did not start within {seconds:.0f} s", rank.name)
        return None


def is_listening(pid: int, port: int) -> bool:
    """True if this process of ours listens on that port."""
    try:
        connections = psutil.Process(pid).net_connections("tcp")
    except PSUTIL_ERRORS:
        return False
    return any(one.status == psutil.CONN_LISTEN and one.laddr.port == port for one in connections)


def is_running(child: Child | None) -> bool:
    """True for a process that was started and has not ended."""
    return child is not None and child.exit_code is None
