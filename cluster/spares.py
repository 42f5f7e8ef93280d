"""Spares: one process for each rank that has imported everything and waits for its start line.

Most of a rank's start is imports; a spare has them behind it, so that a new life of the ring begins at once.
It runs with the lowest priority while it imports and uses nothing but memory while it waits. Knows nothing
of why a life ends.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from cluster.child import Child, ChildPlan, start_child
from cluster.log_files import LineBuffer
from config.rotating_file import RotatingFile

logger = logging.getLogger(__name__)

CODE_FOLDERS = ("config", "distributed", "prompts", "spool")


class Relay(LineBuffer):
    """A spare's standard output: kept until it is a rank, and then that rank's heartbeats."""

    def __init__(self) -> None:
        super().__init__()
        self._target: LineBuffer | None = None
        self._first: str | None = None  # who it is; it says no more before its start line

    def put_line(self, line: str) -> None:
        """Hand one line to the rank that the spare has become."""
        if self._target is not None:
            self._target.put_line(line)
        elif self._first is None:
            self._first = line

    def lead_to(self, target: LineBuffer) -> None:
        """From now on it is a rank."""
        self._target = target
        if self._first is not None:
            target.put_line(self._first)


class Spares:
    """The spares by rank. `fill` when the ring is ready, `take` for a new life, `drop` for stale ones."""

    def __init__(self, log_of: Callable[[str], RotatingFile]) -> None:
        self._log_of = log_of
        self._spares: dict[int, tuple[Child, Relay]] = {}
        self._mark: object = None

    @property
    def children(self) -> list[Child]:
        """All that wait."""
        return [child for child, _ in self._spares.values()]

    def ping(self, line: str) -> None:
        """Tell those on other hosts that we are there."""
        for child in self.children:
            if child.plan.is_remote:
                child.write_soon(line)

    async def fill(self, plans: Mapping[int, ChildPlan], mark: object) -> None:
        """Start a spare for each rank that has none; `mark` is what they must be equal in to be of use."""
        if mark != self._mark:
            await self.drop()
            self._mark = mark
        for rank, plan in plans.items():
            found = self._spares.get(rank)
            if found is not None and found[0].exit_code is None:
                continue
            relay = Relay()
            try:
                self._spares[rank] = await start_child(plan, self._log_of(plan.name), relay), relay
            except OSError as error:
                logger.warning("no spare for %s: %s", plan.name, error)

    async def take(self, rank: int, mark: object, output: LineBuffer) -> Child | None:
        """Give away the spare of a rank, its output to `output`; None where there is none that would do."""
        if mark != self._mark:
            await self.drop()
        found = self._spares.pop(rank, None)
        if found is None or found[0].exit_code is not None:
            return None
        child, relay = found
        relay.lead_to(output)
        return child

    async def drop(self) -> None:
        """End all spares; they do nothing that would need grace."""
        children = self.children
        self._spares.clear()
        await asyncio.gather(*(child.end(0.0) for child in children))


def mark_code(root: Path) -> tuple[tuple[str, int], ...]:
    """What changes when a program that ranks import is edited: a spare of the old code is no use then."""
    files = [root / "server.py"]
    for name in CODE_FOLDERS:
        files += (root / name).rglob("*.py")
    return tuple(sorted((str(path), path.stat().st_mtime_ns) for path in files if path.exists()))


def mark_supervisor(root: Path) -> str:
    """What changes when the supervisor's own program is edited: a running one goes on with the old."""
    files = [path for name in ("cluster", "config") for path in (root / name).glob("*.py")]
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
