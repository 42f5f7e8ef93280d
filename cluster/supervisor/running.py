"""What the parts of the supervisor share: current settings, the children's environment, logs, state.

Everything here changes in one thread, the supervisor's event loop. Knows nothing of ranks or front doors.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cluster.log_files import log_path
from cluster.supervisor.epoch_plan import HEARTBEAT_LIMIT_S
from cluster.supervisor.front_door_watch import SILENCE_LIMIT_S
from cluster.supervisor.restart_policy import FIRST_DELAY_S
from cluster.supervisor.state_file import SupervisorState
from config import Settings
from config.disk_trouble import DiskTroubles
from config.live import to_environment
from config.rotating_file import RotatingFile

ROOT = Path(__file__).resolve().parent.parent.parent
# Heartbeats come once a second: a shorter silence proves nothing.
MIN_HEARTBEAT_LIMIT_S = 2.5


@dataclass(frozen=True)
class Programs:
    """The commands of a rank and of the front door, and how long each may be silent."""

    rank: Sequence[str] = (sys.executable, str(ROOT / "server.py"))
    api: Sequence[str] = (sys.executable, str(ROOT / "api.py"))
    folder: Path = ROOT
    heartbeat_limit_s: float = HEARTBEAT_LIMIT_S
    restart_delay_s: float = FIRST_DELAY_S
    api_silence_limit_s: float = SILENCE_LIMIT_S


@dataclass
class Running:
    """The service as it runs now; `publish` writes a change of `state` to supervisor.json."""

    settings: Settings
    overrides: Mapping[str, str]
    programs: Programs
    state: SupervisorState
    publish: Callable[[], None]
    was_ready: bool = False  # under this supervisor; `state.was_ready` includes earlier ones
    _logs: dict[str, RotatingFile] = field(default_factory=dict)
    troubles: DiskTroubles = field(default_factory=DiskTroubles)

    @property
    def heartbeat_limit_s(self) -> float:
        """How long a rank may be silent: STEP_TIMEOUT, within bounds."""
        limit_s = self.programs.heartbeat_limit_s
        return min(limit_s, max(MIN_HEARTBEAT_LIMIT_S, self.settings.step_timeout))

    def log_of(self, process: str) -> RotatingFile:
        """The log file of a process."""
        if process not in self._logs:
            self._logs[process] = RotatingFile(log_path(self.settings.log_dir, process))
        return self._logs[process]

    @property
    def unready(self) -> str:
        """The state of a service that is not ready: degraded if it was ready before, else starting."""
        has_failed = self.state.was_ready and self.state.reason is not None
        return "degraded" if self.was_ready or has_failed else "starting"

    def set_state(self, state: str, reason: str | None) -> None:
        """Set and publish the service's state."""
        self.state.state, self.state.reason = state, reason
        self.publish()


def make_environment(settings: Settings, num_local_ranks: int | None = None) -> dict[str, str]:
    """The children's environment: ours, every effective setting, and how many ranks share the cores here."""
    environment = {**os.environ, **to_environment(settings), "PYTHONUNBUFFERED": "1"}
    if num_local_ranks is not None:
        environment["LOCAL_RANKS"] = str(num_local_ranks)
    return environment
