"""Processes by identity: pid and start time together, so that a reused pid is never taken for ours.

Knows nothing of what the processes do.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import psutil

# psutil computes the start time from the boot time, which moves by up to a second when the clock is set.
START_TIME_TOLERANCE_S = 2.0


@dataclass(frozen=True)
class ProcessIdentity:
    """One process that was alive once: what is enough to find it again, and never another."""

    pid: int
    start_time: float  # seconds since 1970, psutil's create_time

    def is_alive(self) -> bool:
        """True while this very process runs; a zombie does not."""
        found = self._find()
        try:
            return found is not None and found.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def send(self, number: signal.Signals) -> bool:
        """Send a signal; False if the process is gone or the pid belongs to another one now."""
        found = self._find()
        if found is None:
            return False
        try:
            os.kill(found.pid, number)
        except ProcessLookupError:
            return False
        return True

    def wait(self, timeout_s: float) -> bool:
        """Wait for its end; True when it has ended."""
        found = self._find()
        if found is None:
            return True
        try:
            found.wait(timeout=timeout_s)
        except psutil.TimeoutExpired:
            return not self.is_alive()
        return True

    def _find(self) -> psutil.Process | None:
        try:
            found = psutil.Process(self.pid)
            same = abs(found.create_time() - self.start_time) <= START_TIME_TOLERANCE_S
        except (psutil.NoSuchProcess, ValueError, OverflowError):
            return None
        return found if same else None


def identify(pid: int) -> ProcessIdentity | None:
    """The identity of a process that runs now."""
    try:
        return ProcessIdentity(pid, psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:
        return None


def read_identity(entry: dict[str, Any] | None) -> ProcessIdentity | None:
    """The identity in an entry of a status file or lock; None where it has none."""
    if not entry:
        return None
    pid, start_time = entry.get("pid"), entry.get("start_time")
    if not isinstance(pid, int) or pid <= 1 or not isinstance(start_time, (int, float)):
        return None
    return ProcessIdentity(pid, float(start_time))


def end_all(identities: Iterable[ProcessIdentity], *, grace_s: float) -> list[ProcessIdentity]:
    """SIGTERM, then SIGKILL after `grace_s`; returns those still alive: none unless the system hangs."""
    alive = [identity for identity in identities if identity.send(signal.SIGTERM)]
    for identity in alive:
        identity.wait(grace_s)
    for identity in alive:
        if identity.is_alive():
            identity.send(signal.SIGKILL)
            identity.wait(grace_s + 5.0)
    return [identity for identity in alive if identity.is_alive()]
