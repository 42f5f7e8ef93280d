"""What the ring says of itself: the status files that rank 0 and the supervisor keep in STATE_DIR/run.

Reads run/ring.json and run/supervisor.json, again only when they changed, and judges whether the ring is
ready. Rank 0 says how the ring is; where it does not, or cannot, the supervisor says why. What is given out
names no folder of this machine: strangers read it. Knows nothing of how the files come to be.
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
from config.run_files import read_json

MAX_SILENCE_SECONDS = 10.0
CONTEXT_KEYS = ("MODEL_REPO", "MAX_SEQUENCE_LENGTH", "KV_CACHE_RESERVED_MEMORY_MB")
_FOLDERS = re.compile(r"(?<![\w.:/])(?:/[^\s/:;,'\"()]+)+/(?=[^\s/])")


@dataclass(frozen=True)
class Readiness:
    """One word for machines, one sentence for people."""

    state: str  # ready | loading | connecting | draining | stopped | failed | stalled | down
    reason: str | None

    @property
    def is_ready(self) -> bool:
        return self.state == "ready"


class StatusFile:
    """One JSON file that others replace as a whole."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)
        self._mark: tuple[int, int, int] | None = None
        self._data: dict[str, Any] = {}

    def read(self) -> dict[str, Any]:
        """Return what the file says, or said when it could last be read; empty when it is missing."""
        try:
            stat = os.stat(self._path)
        except OSError:
            self._mark, self._data = None, {}
            return self._data
        mark = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
        if mark != self._mark:
            data = read_json(Path(self._path))
            if data is None:  # no descriptors left, a bad disk, damaged: what it said before ages
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
            return None  # of an earlier life, with other settings
        return ContextLength.from_json(said.get("context"))

    def failure(self) -> str | None:
        """Return why the ring was given up, if it was."""
        supervisor = self.supervisor()
        if supervisor.get("state") != "failed" or not _is_alive(supervisor):
            return None
        return str(supervisor.get("reason") or "the supervisor has given up; its log says why")

    def readiness(self) -> Readiness:
        """Judge by progress: ready means a lap made, by work or by an idle ring's ping, in the last 10 s."""
        supervisor = self.supervisor()
        if not _is_alive(supervisor):  # an earlier one's last word
            supervisor = {}
        return judge(self.ring(), supervisor, now_unix=time.time())


def judge(ring: Mapping[str, Any], supervisor: Mapping[str, Any], *, now_unix: float) -> Readiness:
    """Turn what rank 0 and a living supervisor say into a verdict; pure."""
    said = str(supervisor.get("reason") or "")
    if supervisor.get("state") == "failed":
        return Readiness("failed", said or "the supervisor has given up; its log says why")
    if not ring:
        return Readiness("down", said or "rank 0 has not said anything yet")
    phase = str(ring.get("phase") or "down")
    silence = abs(now_unix - number(ring.get("updated_unix")))
    if silence > MAX_SILENCE_SECONDS and phase not in ("stopped", "failed"):
        return Readiness("down", said or f"rank 0 has said nothing for {silence:.0f} s")
    if phase != "ready":
        return Readiness(phase, str(ring.get("reason") or said or f"the ring is {phase}"))
    if supervisor and number(ring.get("epoch")) < number(supervisor.get("epoch")):
        return Readiness("down", said or "a new ring is being started")
    lap_age = now_unix - number(ring.get("last_lap_unix"))
    if lap_age > MAX_SILENCE_SECONDS:
        return Readiness("stalled", f"no lap of the ring for {lap_age:.0f} s")
    return Readiness("ready", None)


def _without_places(said: dict[str, Any]) -> dict[str, Any]:
    """The same with a reason that names files without their folders."""
    reason = said.get("reason")
    return {**said, "reason": _FOLDERS.sub("…/", reason)} if isinstance(reason, str) else said


def _is_alive(supervisor: Mapping[str, Any]) -> bool:
    """Whether the process that wrote this lives; what names none is believed."""
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


def mapping(value: object) -> Mapping[str, Any]:
    """Return an object of a status file; nothing in it where it is none."""
    return value if isinstance(value, Mapping) else {}


def number(value: object) -> float:
    """Return a number of a status file; 0 where it is none."""
    return float(value) if isinstance(value, int | float) else 0.0
