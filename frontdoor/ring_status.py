"""What the ring says of itself: the status files that rank 0 and the supervisor keep in STATE_DIR/run.

Reads run/ring.json and run/supervisor.json, again only when they changed, and judges whether the ring is
ready. Knows nothing of how the files come to be.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config.run_files import read_json

MAX_SILENCE_SECONDS = 10.0


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
        self._path = path
        self._mark: tuple[int, int, int] | None = None
        self._data: dict[str, Any] = {}

    def read(self) -> dict[str, Any]:
        """Return what the file says; empty when it is missing or broken."""
        try:
            stat = self._path.stat()
        except OSError:
            self._mark, self._data = None, {}
            return self._data
        mark = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
        if mark != self._mark:
            self._data = read_json(self._path) or {}
            self._mark = mark
        return self._data


class RingStatus:
    """Both status files, and the judgement over them."""

    def __init__(self, run_dir: Path) -> None:
        self._ring = StatusFile(run_dir / "ring.json")
        self._supervisor = StatusFile(run_dir / "supervisor.json")

    def ring(self) -> dict[str, Any]:
        return self._ring.read()

    def supervisor(self) -> dict[str, Any]:
        return self._supervisor.read()

    def failure(self) -> str | None:
        """Return why the ring was given up, if it was."""
        supervisor = self.supervisor()
        if supervisor.get("state") != "failed":
            return None
        return str(supervisor.get("reason") or "the supervisor has given up; its log says why")

    def readiness(self) -> Readiness:
        """Judge by progress: ready means a lap made, or an idle ring that said so, in the last 10 s."""
        failure = self.failure()
        if failure is not None:
            return Readiness("failed", failure)
        return judge(self.ring(), now_unix=time.time())


def judge(ring: Mapping[str, Any], *, now_unix: float) -> Readiness:
    """Turn rank 0's status into a verdict; pure."""
    if not ring:
        return Readiness("down", "rank 0 has not said anything yet")
    phase = str(ring.get("phase") or "down")
    silence = abs(now_unix - _number(ring.get("updated_unix")))
    if silence > MAX_SILENCE_SECONDS and phase not in ("stopped", "failed"):
        return Readiness("down", f"rank 0 has said nothing for {silence:.0f} s")
    reason = ring.get("reason")
    if phase != "ready":
        return Readiness(phase, str(reason) if reason else f"the ring is {phase}")
    queue = ring.get("queue")
    is_working = isinstance(queue, Mapping) and _number(queue.get("num_running")) > 0
    lap_age = now_unix - _number(ring.get("last_lap_unix"))
    if is_working and lap_age > MAX_SILENCE_SECONDS:
        return Readiness("stalled", f"no lap of the ring for {lap_age:.0f} s with requests running")
    return Readiness("ready", None)


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
