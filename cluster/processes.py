"""Processes by pid and start time together, so that a reused pid is never taken for ours.

Knows nothing of what the processes do.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import psutil

# psutil computes the start time from the boot time, which moves when somebody sets the clock.
START_TIME_TOLERANCE_S = 2.0
# On macOS psutil fails at random, mostly for other users' processes (psutil issues 1901, 2116).
PSUTIL_ERRORS = (psutil.Error, RuntimeError, SystemError, OSError)
NUM_TRIES = 3
LOOK_S = 0.05

T = TypeVar("T")


@dataclass(frozen=True)
class ProcessIdentity:
    """Identifies one process, dead or alive."""

    pid: int
    start_time: float  # seconds since 1970, psutil's create_time

    def is_alive(self) -> bool:
        """True while this process runs (a zombie does not). Where psutil fails, the pid decides."""
        try:
            found = self._find()
            return found is not None and insist(found.status) != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False
        except PSUTIL_ERRORS:
            return psutil.pid_exists(self.pid)

    def send(self, number: signal.Signals) -> bool:
        """Send a signal; False if the process has ended."""
        try:
            if self._find() is None:
                return False
            os.kill(self.pid, number)
        except PSUTIL_ERRORS:  # ProcessLookupError among them
            return False
        return True

    def wait(self, timeout_s: float) -> bool:
        """Wait for its end; True when it has ended."""
        deadline = time.monotonic() + timeout_s
        while self.is_alive():
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return False
            try:
                # For a short time only: psutil would wait for a zombie, too.
                psutil.Process(self.pid).wait(timeout=min(left_s, LOOK_S))
            except psutil.TimeoutExpired:
                continue
            except PSUTIL_ERRORS:
                time.sleep(min(left_s, LOOK_S))
        return True

    def _find(self) -> psutil.Process | None:
        """The process if it runs, else None. Raises: one of PSUTIL_ERRORS."""
        try:
            found = insist(lambda: psutil.Process(self.pid))
            start_time = insist(found.create_time)
        except (psutil.NoSuchProcess, ValueError, OverflowError):
            return None
        return found if abs(start_time - self.start_time) <= START_TIME_TOLERANCE_S else None


def insist(ask: Callable[[], T]) -> T:
    """Call psutil, and retry if it fails. Raises: its last error."""
    for _ in range(NUM_TRIES - 1):
        try:
            return ask()
        except psutil.NoSuchProcess:
            raise
        except PSUTIL_ERRORS:
            continue
    return ask()


def identify(pid: int) -> ProcessIdentity | None:
    """The identity of this process or of a child that just started; None if it has ended.

    If psutil fails, the start time is now.
    """
    try:
        return ProcessIdentity(pid, insist(lambda: psutil.Process(pid).create_time()))
    except psutil.NoSuchProcess:
        return None
    except PSUTIL_ERRORS:
        return ProcessIdentity(pid, time.time())


def read_identity(entry: dict[str, Any] | None) -> ProcessIdentity | None:
    """The identity in an entry of a status file or lock; None without one."""
    if not entry:
        return None
    pid, start_time = entry.get("pid"), entry.get("start_time")
    if not isinstance(pid, int) or pid <= 1 or not isinstance(start_time, (int, float)):
        return None
    return ProcessIdentity(pid, float(start_time))


def end_all(identities: Iterable[ProcessIdentity], *, grace_s: float) -> list[ProcessIdentity]:
    """SIGTERM, then SIGKILL after `grace_s`; returns those that survive."""
    alive = [identity for identity in identities if identity.send(signal.SIGTERM)]
    for identity in alive:
        identity.wait(grace_s)
    for identity in alive:
        if identity.is_alive():
            identity.send(signal.SIGKILL)
            identity.wait(grace_s + 5.0)
    return [identity for identity in alive if identity.is_alive()]
