"""The ring's status, from the files that rank 0 and the supervisor write into STATE_DIR/run.

Reads run/ring.json and run/supervisor.json when they have changed, and decides whether the ring is ready.
Rank 0 reports the state of the ring; where it is silent, the supervisor gives the reason. The answers are
public and name no folder of this machine. Knows nothing of the files' writers.
"""

import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config import Settings
from config.context_length import ContextLength
from config.run_files import number, read_json

MAX_SILENCE_SECONDS = 10.0
CONTEXT_KEYS = ("MODEL_REPO", "MAX_SEQUENCE_LENGTH", "KV_CACHE_RESERVED_MEMORY_MB")
_FOLDERS = re.compile(r"(?<![\w.:/])(?:/[^\s/:;,'\"()]+)+/(?=[^\s/])")


@dataclass(frozen=True)
class Readiness:
    """A state for programs, and a reason for people."""

    state: str  # ready | loading | connecting | draining | stopped | failed | stalled | down
    reason: str | None

    @property
    def is_ready(self) -> bool:
        return self.state == "ready"


class StatusFile:
    """One JSON file that another process replaces as a whole."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)
        self._mark: tuple[int, int, int] | None = None
        self._data: dict[str, Any] = {}

    def read(self) -> dict[str, Any]:
        """Return the file's object, or the last readable one; empty where the file is missing."""
        try:
            stat = os.stat(self._path)
        except OSError:
            self._mark, self._data = None, {}
            return self._data
        mark = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
        if mark != self._mark:
            data = read_json(Path(self._path))
            if data is None:  # no descriptors, a failing disk, a damaged file: keep the last object
                self._mark = None
            else:
                self._data, self._mark = data, mark
        return self._data


class RingStatus:
    """Both status files, and the judgement over them."""

    def __init__(self, run_dir: Path) -> None:
        self._ring = StatusFile(run_dir / "ring.json")
        self._supervisor = StatusFile(run_dir / "supervisor.json")

    def ring(self) -> dict[str, Any]:
        return _without_places(self._ring.read())

    def supervisor(self) -> dict[str, Any]:
        return _without_places(self._supervisor.read())

    def context(self, settings: Settings) -> ContextLength | None:
        """Return what rank 0 published, where it runs with these settings and knows by now."""
        said = self._ring.read()
        theirs = said.get("settings") or {}
        if any(theirs.get(key) != settings.value(key) for key in CONTEXT_KEYS):
            return None  # an earlier ring wrote it, with other settings
        return ContextLength.from_json(said.get("context"))

    def failure(self) -> str | None:
        """Return why the supervisor gave the ring up, if it did."""
        supervisor = self.supervisor()
        if supervisor.get("state") != "failed" or not _is_alive(supervisor):
            return None
        return str(supervisor.get("reason") or "the supervisor has given up; its log says why")

    def readiness(self) -> Readiness:
        """Judge by progress: a ready ring made a lap recently, with work or with an idle ring's ping."""
        supervisor = self.supervisor()
        if not _is_alive(supervisor):  # the status of an earlier supervisor
            supervisor = {}
        return judge(self.ring(), supervisor, now_unix=time.time())


def judge(ring: Mapping[str, Any], supervisor: Mapping[str, Any], *, now_unix: float) -> Readiness:
    """Decide readiness from the status of rank 0 and of a living supervisor; pure."""
    said = str(supervisor.get("reason") or "")
    if supervisor.get("state") == "failed":
        return Readiness("failed", said or "the supervisor has given up; its log says why")
    if not ring:
        return Readiness("down", said or "rank 0 has not reported yet")
    phase = str(ring.get("phase") or "down")
    silence = abs(now_unix - number(ring.get("updated_unix")))
    if silence > MAX_SILENCE_SECONDS and phase not in ("stopped", "failed"):
        return Readiness("down", said or f"rank 0 has not reported for {silence:.0f} s")
    if phase != "ready":
        return Readiness(phase, str(ring.get("reason") or said or f"the ring is {phase}"))
    if supervisor and number(ring.get("epoch")) < number(supervisor.get("epoch")):
        return Readiness("down", said or "a new ring is starting")
    lap_age = now_unix - number(ring.get("last_lap_unix"))
    if lap_age > MAX_SILENCE_SECONDS:
        return Readiness("stalled", f"no lap of the ring for {lap_age:.0f} s")
    return Readiness("ready", None)


def _without_places(said: dict[str, Any]) -> dict[str, Any]:
    """Return the status with a reason that names files without their folders."""
    reason = said.get("reason")
    return {**said, "reason": _FOLDERS.sub("…/", reason)} if isinstance(reason, str) else said


def _is_alive(supervisor: Mapping[str, Any]) -> bool:
    """Whether the process that wrote the status lives; True where it names no process."""
    pid = supervisor.get("pid")
    if not isinstance(pid, int) or pid <= 1:
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
