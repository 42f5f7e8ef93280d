"""What the parts of the supervisor share: settings, the environment of children, logs, state, and the pause
after a failure.

Everything here changes in one thread, the supervisor's event loop. Starts and ends no process.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cluster.log_files import log_path
from cluster.supervisor.epoch_plan import HEARTBEAT_LIMIT_S
from cluster.supervisor.front_door_watch import SILENCE_LIMIT_S
from cluster.supervisor.restart_policy import FIRST_DELAY_S, RestartPolicy
from cluster.supervisor.ring_epoch import Verdict
from cluster.supervisor.state_file import SupervisorState
from cluster.supervisor.tasks import wait_for_any
from config import Settings
from config.disk_trouble import DiskTroubles
from config.live import to_environment
from config.rotating_file import RotatingFile

ROOT = Path(__file__).resolve().parent.parent.parent
# Heartbeats come once a second: a shorter silence proves nothing.
MIN_HEARTBEAT_LIMIT_S = 2.5

logger = logging.getLogger("cluster.supervisor.supervisor")


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

    async def pause(
        self, what: str, verdict: Verdict, delay_s: float | None, policy: RestartPolicy, *asked: asyncio.Event
    ) -> None:
        """Report that ring or front door failed, and wait for the next try, or until somebody asks."""
        state, reason = self.state, verdict.reason
        is_known = reason == state.reason and (verdict.is_away or policy.is_open)
        state.failed_process, state.reason = verdict.process, reason
        state.num_failures, state.is_stuck = max(policy.num_failures, policy.num_away), policy.is_open
        if delay_s is None:
            logger.error("%s is not tried again after %d failures: %s", what, policy.num_failures, reason)
            self.set_state("failed", reason)
            await wait_for_any(*asked)
            return
        if not is_known:  # log a lasting trouble once
            logger.warning("%s; %s starts again in %.1f s", reason, what, delay_s)
        state.restarts += not verdict.is_away
        state.next_try_unix = time.time() + delay_s
        is_given_up = state.state == "failed"  # the other one: this one's next try does not change that
        self.set_state("failed" if is_given_up else self.unready, reason)
        if delay_s:
            await wait_for_any(*asked, limit_s=delay_s)


def make_environment(settings: Settings, num_local_ranks: int | None = None) -> dict[str, str]:
    """The children's environment: ours, every effective setting, and how many ranks share the cores here."""
    environment = {**os.environ, **to_environment(settings), "PYTHONUNBUFFERED": "1"}
    if num_local_ranks is not None:
        environment["LOCAL_RANKS"] = str(num_local_ranks)
    return environment
