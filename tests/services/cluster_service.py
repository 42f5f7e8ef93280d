"""A supervisor over fake ranks and a fake front door, in a folder of its own, for all cluster tests."""

import io
import json
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cluster import ports
from cluster.commands.restart import restart
from cluster.commands.start import start
from cluster.commands.status import make_report
from cluster.commands.stop import stop
from cluster.supervisor.service import Service, read_service
from cluster.terminal import Terminal
from config import Settings
from config.live import load_for_looking

SUPERVISOR = (sys.executable, "-m", "tests.fakes.fake_supervisor")
NOTHING = (sys.executable, "-c", "")


@dataclass
class Bench:
    """One service in a folder of its own; whatever it started is ended with the test."""

    overrides: dict[str, str]
    root: Path  # of .env and config.json
    output: io.StringIO = field(default_factory=io.StringIO)

    @property
    def settings(self) -> Settings:
        return load_for_looking(self.overrides, self.root)

    @property
    def terminal(self) -> Terminal:
        return Terminal(self.output)

    def start(self) -> int:
        return start(self.settings, self.overrides, self.terminal, supervisor=SUPERVISOR, prepare=NOTHING)

    def restart(self) -> int:
        return restart(self.settings, self.overrides, self.terminal, prepare=NOTHING)

    def stop(self) -> int:
        return stop(self.settings, self.terminal)

    def read(self) -> Service:
        return read_service(self.settings)

    def put_in_trouble(self, trouble: str) -> Service:
        """Kill rank 0, and let the next rings fail in this way while the file `trouble` exists."""
        (self.root / "trouble").write_text(trouble, encoding="ascii")
        self.read().processes["rank 0"].send(signal.SIGKILL)
        return self.wait_until(lambda service: service.state == "degraded")

    def wait_until(self, holds: Callable[[Service], bool], limit_s: float = 40.0) -> Service:
        deadline = time.monotonic() + limit_s
        pause = threading.Event()
        while not holds(service := self.read()):
            assert time.monotonic() < deadline, json.dumps(make_report(service), indent=1)
            pause.wait(0.05)
        return service

    def get_health(self) -> int:
        """The pid of the front door that answers."""
        with urllib.request.urlopen(f"{self.read().url}/health", timeout=15) as response:
            return int(json.load(response)["pid"])


def supervisor_command(bench: Bench, program: Sequence[str] = SUPERVISOR) -> list[str]:
    """A supervisor as `start` launches it."""
    return [*program, *(word for pair in bench.overrides.items() for word in ("--set", "=".join(pair)))]


@contextmanager
def run_supervisor(bench: Bench, program: Sequence[str] = SUPERVISOR) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a supervisor in the foreground, and stop it; one that a failing test leaves is killed."""
    with subprocess.Popen(supervisor_command(bench, program), stderr=subprocess.DEVNULL) as supervisor:
        try:
            yield supervisor
            supervisor.send_signal(signal.SIGTERM)
            assert supervisor.wait(10) == 0
        finally:
            supervisor.kill()


def find_free_port() -> int:
    """A port that no outgoing connection is given."""
    return ports.free_ring_ports("127.0.0.1", 1)[0]


@contextmanager
def make_bench(folder: Path) -> Iterator[Bench]:
    """A bench in a folder."""
    root, model = folder / "root", folder / "model"
    root.mkdir()
    model.mkdir()
    for name in ("config.json", "model.safetensors"):  # all that is looked at before ranks start
        (model / name).touch()
    overrides = {
        "STATE_DIR": str(folder / "state"),
        "API_PORT": str(find_free_port()),
        "LOCAL_RANKS": "2",
        "MODEL_REPO": str(model),
        "SHUTDOWN_TIMEOUT": "5",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name in ("FAKE_RANK", "FAKE_API"):
            patch.delenv(name, raising=False)
        patch.setenv("FAKE_ROOT", str(root))
        patch.setattr("cluster.supervisor.leftovers.KILL_GRACE_S", 0.5)
        made = Bench(root=root, overrides=overrides)
        yield made
    service = made.read()
    for identity in [*service.leaving, *service.processes.values(), *filter(None, [service.holder])]:
        identity.send(signal.SIGKILL)
        identity.wait(5.0)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A service of the test's own, to be started by it."""
    with make_bench(tmp_path) as made:
        yield made


@pytest.fixture(scope="module")
def shared_bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """One service for the tests of a file; each takes it by `running`."""
    with make_bench(tmp_path_factory.mktemp("service")) as made:
        yield made


@pytest.fixture
def running(shared_bench: Bench) -> Bench:
    """The file's service, ready, whatever the test before has left of it."""
    for name in ("trouble", "idle-rank", ".env"):
        (shared_bench.root / name).unlink(missing_ok=True)
    if shared_bench.read().holder is None:
        shared_bench.start()
    shared_bench.wait_until(lambda service: service.state == "ready")
    shared_bench.output.seek(0)
    shared_bench.output.truncate()
    return shared_bench
