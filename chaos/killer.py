"""The killer: seeded victims and moments, SIGKILL, and only ever processes of its own service.

Kills by pid and start time from the status file of its own STATE_DIR. A kill counts if its victim was
alive; if the drawn one was not, the killer takes the next. After a supervisor's death the killer runs
`start`, as a user would, and keeps killing ranks and front door meanwhile.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.commands.stop import stop
from cluster.processes import ProcessIdentity
from cluster.supervisor.service import Service, read_service
from cluster.terminal import Terminal
from config import REPOSITORY_ROOT, Settings
from spool.names import is_entry_name

VICTIMS = ("rank 0", "other rank", "api", "supervisor")
WEIGHTS = (35, 35, 20, 10)
START_LIMIT_S = 300.0
MAX_STARTS_IN_A_ROW = 5
LOOK_INTERVAL_S = 0.1
# This share of the pauses begins when the service is ready again; after others a kill may hit a start.
READY_SHARE = 2 / 3
READY_LIMIT_S = 60.0
MARKER = "CHAOS_RUN"  # in the environment of every process of a run


class ServiceTrouble(Exception):
    """The service does not start, or does not answer without kills. Ends the run, with a journal."""


@dataclass(frozen=True)
class Kill:
    """One kill; `state` is the service's at that moment, num_active the number of running requests."""

    at_unix: float
    victim: str
    pid: int
    state: str
    num_active: int


class Killer:
    """Kills until `run` ends; `kills` lists its kills."""

    def __init__(
        self, settings: Settings, flags: Sequence[str], seed: int, pause_s: tuple[float, float], marker: str
    ) -> None:
        self._settings = settings
        self._flags = list(flags)
        self._random = random.Random(seed)
        self._pause_s = pause_s
        self._environment = {**os.environ, MARKER: marker}
        self._starting: subprocess.Popen[bytes] | None = None
        self._log = settings.state_dir.parent / "start.log"
        self.kills: list[Kill] = []
        self.num_failed_starts = 0
        self.num_given_up = 0  # times that the ring's breaker opened

    def run(self, stopping: threading.Event, deadline: float, max_kills: int) -> None:
        """Kill at random moments until the deadline or the limit of kills."""
        while not stopping.is_set() and time.monotonic() < deadline and len(self.kills) < max_kills:
            if self._random.random() < READY_SHARE:
                self._wait_until_ready(stopping, deadline)
            stopping.wait(self._random.uniform(*self._pause_s))
            self._see_to_it_that_it_starts()
            self.shoot(self._random.randrange(1, 1 << 16))

    def _wait_until_ready(self, stopping: threading.Event, deadline: float) -> None:
        deadline = min(deadline, time.monotonic() + READY_LIMIT_S)
        while read_service(self._settings).state != "ready" and time.monotonic() < deadline:
            self._see_to_it_that_it_starts()
            if stopping.wait(LOOK_INTERVAL_S):
                return

    def shoot(self, number: int) -> None:
        """Kill one living process, of a kind drawn by weight."""
        kinds = [self._random.choices(VICTIMS, WEIGHTS)[0]]
        kinds += self._random.sample(VICTIMS, len(VICTIMS))
        service = read_service(self._settings)
        for kind in kinds:
            name, victim = self._find(service, kind, number)
            if victim is not None and victim.is_alive():
                kill = Kill(time.time(), name, victim.pid, service.state, self._count_active())
                if victim.send(signal.SIGKILL):
                    self.kills.append(kill)
                    self._follow_up(name, victim)
                return

    def _find(self, service: Service, kind: str, number: int) -> tuple[str, ProcessIdentity | None]:
        if kind == "supervisor":  # not during a start, which would fail
            return kind, None if self._is_starting() else service.holder
        others = self._settings.local_ranks - 1
        name = f"rank {1 + number % others}" if kind == "other rank" and others else kind
        return name, service.processes.get(name)

    def _follow_up(self, name: str, victim: ProcessIdentity) -> None:
        if name == "supervisor":
            victim.wait(10.0)
            self._launch()

    def _count_active(self) -> int:
        try:
            return sum(map(is_entry_name, os.listdir(self._settings.spool_dir / "active")))
        except OSError:
            return 0

    def _is_starting(self) -> bool:
        return self._starting is not None and self._starting.poll() is None

    def _launch(self) -> None:
        command = [sys.executable, "-m", "cluster", "start", *self._flags]
        with self._log.open("ab") as log:
            self._starting = subprocess.Popen(
                command,
                cwd=REPOSITORY_ROOT,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def _see_to_it_that_it_starts(self) -> None:
        """Start the service again, as a user would, if a start failed or the supervisor gave up."""
        if self._is_starting():
            return
        if self._starting is not None and self._starting.returncode != 0:
            self.num_failed_starts += 1
            print(f"a start failed: see {self._log}", flush=True)
        self._starting = None
        service = read_service(self._settings)
        if service.holder is not None and service.state == "failed":
            self.num_given_up += 1
            print(f"the ring was given up: {service.reason}", flush=True)
            stop(self._settings, Terminal(), is_quiet=True)
            service = read_service(self._settings)
        if service.holder is None:
            self._launch()

    def revive(self) -> None:
        """Bring the service to ready, so that it answers all accepted requests.

        Raises:
            ServiceTrouble: it does not start.
        """
        pause, deadline = threading.Event(), time.monotonic() + START_LIMIT_S
        num_failed_before = self.num_failed_starts
        while (
            self.num_failed_starts < num_failed_before + MAX_STARTS_IN_A_ROW and time.monotonic() < deadline
        ):
            self._see_to_it_that_it_starts()
            if not self._is_starting() and read_service(self._settings).state == "ready":
                return
            pause.wait(LOOK_INTERVAL_S)
        self.end_start()
        raise ServiceTrouble(f"the service does not start: see {self._log}")

    def end_start(self) -> None:
        """Kill a start that still runs."""
        if self._starting is not None and self._starting.poll() is None:
            self._starting.kill()
            self._starting.wait()
