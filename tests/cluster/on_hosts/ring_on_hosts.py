"""The service on three hosts: its own copy of the code on the first one, prepared workers, its commands."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.hosts.model_files import folder_name
from cluster.processes import ProcessIdentity
from config import REPOSITORY_ROOT as ROOT
from config import load_settings
from tests.cluster.on_hosts.namespaces import Hosts, NamespaceHost
from tests.cluster.on_hosts.prepared import WORKER_DIR, prepare_environment

PROGRAMS = ("api.py", "server.py", "launch.sh", "requirements.txt", "requirements-builtin.txt")
ROOMS = ("cluster", "config", "distributed", "frontdoor", "prompts", "spool")
API_PORT = 8100
COMMAND_LIMIT_S = 240.0
CHANGE_LIMIT_S = 120.0
SESSION_LIMIT_S = 60.0


@dataclass
class RingOnHosts:
    """One service over three hosts; ends with them."""

    hosts: Hosts
    settings: dict[str, str]

    @property
    def first(self) -> NamespaceHost:
        return self.hosts.first

    @property
    def root(self) -> Path:
        """The copy of the code."""
        return self.first.home / "service"

    @property
    def state(self) -> Path:
        return self.first.home / "state"

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """One command on the first host."""
        command = [sys.executable, "-m", "cluster", *words]
        return self.first.run(command, cwd=self.root, env=self.settings, limit_s=COMMAND_LIMIT_S)

    def check(self, *words: str) -> str:
        """One command that must succeed; what it printed."""
        ended = self.run(*words)
        assert ended.returncode == 0, f"{words}\n{ended.stdout}{ended.stderr}\n{self.logs()}"
        return ended.stdout

    def logs(self) -> str:
        """The end of the supervisor's log, for a failed test."""
        log = self.state / "logs" / "supervisor.log"
        return log.read_text(encoding="utf-8")[-4000:] if log.exists() else "no log"

    def read(self) -> dict[str, Any]:
        """What supervisor.json says."""
        try:
            said: dict[str, Any] = json.loads((self.state / "run" / "supervisor.json").read_text())
        except (OSError, ValueError):
            return {}
        return said

    def wait_until(
        self, holds: Callable[[dict[str, Any]], bool], limit_s: float = CHANGE_LIMIT_S
    ) -> dict[str, Any]:
        """Wait for a state of the supervisor."""
        deadline, pause = time.monotonic() + limit_s, threading.Event()
        while not holds(said := self.read()):
            assert time.monotonic() < deadline, f"{json.dumps(said, indent=1)}\n{self.logs()}"
            pause.wait(0.05)
        return said

    def wait_for_epoch_after(self, epoch: int) -> dict[str, Any]:
        """Wait until a later epoch is ready."""
        return self.wait_until(lambda said: said.get("state") == "ready" and said["epoch"] > epoch)

    def find_rank(self, rank: int) -> ProcessIdentity:
        """The process of a rank on another host; pids of all hosts are this machine's."""
        there = next(e for e in self.read()["processes"] if e["name"] == f"rank {rank}")["process_there"]
        return ProcessIdentity(there["pid"], there["start_time"])

    def health(self) -> dict[str, Any]:
        """What the front door says."""
        answered = self.first.run(["curl", "-s", f"http://127.0.0.1:{API_PORT}/health"], check=True)
        said: dict[str, Any] = json.loads(answered.stdout)
        return said

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Ask all the time meanwhile; in the end every request was answered once."""
        command = [sys.executable, "-m", "tests.cluster.on_hosts.asking", f"http://127.0.0.1:{API_PORT}"]
        with self.first.popen(command, cwd=self.root) as client:
            try:
                yield
                out, _ = client.communicate(timeout=CHANGE_LIMIT_S)  # closes its standard input
            except BaseException:
                client.kill()
                raise
        said = json.loads(out.splitlines()[-1])
        assert said["wrong"] == []
        assert said["num_answered"] > 0

    def find_leftovers(self) -> dict[str, str]:
        """What is on the hosts that should not be, by name.

        The ssh daemon's own sessions get time: the far end of a connection that was cut stays until TCP tries
        again to close it, and each try is twice as far from the one before.
        """
        deadline = time.monotonic() + SESSION_LIMIT_S
        while any(host.has_sessions() for host in self.hosts) and time.monotonic() < deadline:
            time.sleep(0.2)
        within = {self.first.name: ["service", "state", ".cache"]}
        found = {
            host.name: host.find_leftovers(within=within.get(host.name, [WORKER_DIR])) for host in self.hosts
        }
        return {name: str(left) for name, left in found.items() if left}


def make_ring(hosts: Hosts, **settings: str) -> RingOnHosts:
    """Copy the code and prepare the workers; the built-in model is laid where a start would copy it."""
    ring = RingOnHosts(
        hosts,
        {
            "WORKER_HOSTS": "mac2,mac3",
            "STATE_DIR": str(hosts.first.home / "state"),
            "MODEL_REPO": "builtin:smollm2-135m",
            "API_PORT": str(API_PORT),
            "BLAS_THREADS": "1",
            **settings,
        },
    )
    ring.root.mkdir()
    for name in PROGRAMS:
        shutil.copy2(ROOT / name, ring.root / name)
    for name in ROOMS:
        shutil.copytree(ROOT / name, ring.root / name, ignore=shutil.ignore_patterns("__pycache__"))
    place = ring.root / "tests" / "cluster" / "on_hosts"
    place.mkdir(parents=True)
    shutil.copy2(Path(__file__).with_name("asking.py"), place / "asking.py")
    for host in (hosts.second, hosts.third):
        prepare_environment(host)
    if "MODEL_REPO" not in settings:
        lay_model(ring)
    return ring


def lay_model(ring: RingOnHosts) -> None:
    """Make the model on the first host, and link its files into the workers' folders."""
    prepare = [sys.executable, "-m", "distributed.prepare"]
    ring.first.run(prepare, cwd=ring.root, env=ring.settings, check=True)
    settings = load_settings(ring.settings, environ={})
    target = f"models/{folder_name(settings.model_name, settings.model_dir)}"
    for host in (ring.hosts.second, ring.hosts.third):
        folder = host.home / WORKER_DIR / target
        folder.mkdir(mode=0o700, parents=True)
        for path in settings.model_dir.iterdir():
            if path.is_file():
                os.link(path, folder / path.name)
