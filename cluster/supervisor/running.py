"""What the parts of the supervisor share: the settings as they run, the environment of children, logs, state.

Everything in here changes in one thread, the supervisor's event loop. Knows nothing of ranks or front doors.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cluster.log_files import log_path
from cluster.supervisor.front_door_watch import SILENCE_LIMIT_S
from cluster.supervisor.restart_policy import FIRST_DELAY_S
from cluster.supervisor.ring_epoch import HEARTBEAT_LIMIT_S
from cluster.supervisor.state_file import SupervisorState
from config import Settings
from config.disk_trouble import DiskTroubles
from config.live import to_environment
from config.rotating_file import RotatingFile

ROOT = Path(__file__).resolve().parent.parent.parent
# A beat comes every second: a shorter silence says nothing.
MIN_HEARTBEAT_LIMIT_S = 2.5


@dataclass(frozen=True)
class Programs:
    """What is started for a rank and for the front door, and how long each may be silent."""

    rank: Sequence[str] = (sys.executable, str(ROOT / "server.py"))
    api: Sequence[str] = (sys.executable, str(ROOT / "api.py"))
    folder: Path = ROOT
    heartbeat_limit_s: float = HEARTBEAT_LIMIT_S
    restart_delay_s: float = FIRST_DELAY_S
    api_silence_limit_s: float = SILENCE_LIMIT_S


@dataclass
class Running:
    """The service as it runs now; `publish` tells the world of a change of `state`."""

    settings: Settings
    overrides: Mapping[str, str]
    programs: Programs
    state: SupervisorState
    publish: Callable[[], None]
    was_ready: bool = False  # since this supervisor began; `state.was_ready` knows the earlier ones too
    _logs: dict[str, RotatingFile] = field(default_factory=dict)
    troubles: DiskTroubles = field(default_factory=DiskTroubles)

    def make_environment(self, num_local_ranks: int | None = None) -> dict[str, str]:
        """What a child that is started now runs with."""
        return make_environment(self.settings, num_local_ranks)

    @property
    def heartbeat_limit_s(self) -> float:
        """A rank that says nothing for so long has stopped: STEP_TIMEOUT, within bounds."""
        limit_s = self.programs.heartbeat_limit_s
        return min(limit_s, max(MIN_HEARTBEAT_LIMIT_S, self.settings.step_timeout))

    def log_of(self, process: str) -> RotatingFile:
        """The log file of a process, by its name."""
        if process not in self._logs:
            self._logs[process] = RotatingFile(log_path(self.settings.log_dir, process))
        return self._logs[process]

    @property
    def unready(self) -> str:
        """What a service is that is not ready: starting, or degraded where it worked before and failed."""
        has_failed = self.state.was_ready and self.state.reason is not None
        return "degraded" if self.was_ready or has_failed else "starting"

    def set_state(self, state: str, reason: str | None) -> None:
        """Say how the service is."""
        self.state.state, self.state.reason = state, reason
        self.publish()


def make_environment(settings: Settings, num_local_ranks: int | None = None) -> dict[str, str]:
    """The children's environment: ours, every effective setting, and how many ranks share the cores here."""
    environment = {**os.environ, **to_environment(settings), "PYTHONUNBUFFERED": "1"}
    if num_local_ranks is not None:
        environment["LOCAL_RANKS"] = str(num_local_ranks)
    return environment
