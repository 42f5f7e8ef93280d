"""A whole service where every process sees a Mac (tests/fakes/darwin): commands, real ranks, a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from config import REPOSITORY_ROOT as ROOT
from tests.services.cluster_service import find_free_port
from tests.services.waiting import until

pytestmark = pytest.mark.slow

MODEL = "simulated:layers=4,layer_us=1000,row_us=0,token_us=0,vocab=1024,hidden=16"


class FakeMac:
    """launch.sh's commands in a folder whose name is too long for the sockets below it."""

    def __init__(self, folder: Path) -> None:
        self.state = folder / ("long" * 25)
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT / "tests" / "fakes" / "darwin"),
            "STATE_DIR": str(self.state),
            "MODEL_REPO": MODEL,
            "LOCAL_RANKS": "2",
            "API_PORT": str(find_free_port()),
        }

    def run(self, *words: str, code: int = 0) -> str:
        """Run a command; what it printed."""
        command = [sys.executable, "-m", "cluster", *words]
        ended = subprocess.run(
            command,
            cwd=ROOT,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert ended.returncode == code, ended.stdout + ended.stderr
        assert "Traceback" not in ended.stdout + ended.stderr
        return ended.stdout

    def status(self) -> dict[str, Any]:
        """What `status --json` says, whether it is ready or not."""
        command = [sys.executable, "-m", "cluster", "status", "--json"]
        ended = subprocess.run(
            command, cwd=ROOT, env=self.environment, capture_output=True, timeout=60, check=False
        )
        report: dict[str, Any] = json.loads(ended.stdout)
        return report


@pytest.fixture
def fake_mac(tmp_path: Path) -> Iterator[FakeMac]:
    made = FakeMac(tmp_path)
    yield made
    made.run("stop")


def test_a_service_starts_answers_survives_a_kill_and_stops_on_a_fake_mac(fake_mac: FakeMac) -> None:
    """With psutil that fails at random, 256 files, a slow flush of the disk, and no /proc."""
    assert "no fast BLAS" not in fake_mac.run("doctor"), "macOS needs none"
    fake_mac.run("start")
    assert "Every rank took part (2 of 2)" in fake_mac.run("test")
    entries = fake_mac.status()["supervisor"]["processes"]
    os.kill(next(entry["pid"] for entry in entries if entry["name"] == "rank 1"), signal.SIGKILL)
    until(lambda: (now := fake_mac.status())["state"] == "ready" and now["supervisor"]["epoch"] == 2)
    assert "Every rank took part (2 of 2)" in fake_mac.run("test")
    assert "is served by this service" in fake_mac.run("doctor")
    assert "nothing is left running" in fake_mac.run("stop")
    fake_mac.run("status", code=3)
    logs = [path.read_text() for path in (fake_mac.state / "logs").iterdir()]
    assert logs and not any("Traceback" in log for log in logs)


SEES = """
import os, psutil, resource, socket, sys
print(sys.platform, hasattr(os, "sched_getaffinity"), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
for attempt in (
    lambda: open("/proc/meminfo"),
    lambda: socket.socket(socket.AF_UNIX).bind("x" * 104),
    lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (20_000, 20_000)),
    lambda: [psutil.Process(os.getppid()).create_time() for _ in range(100)],
    psutil.net_connections,
):
    try:
        attempt()
        print("nothing")
    except Exception as error:
        print(type(error).__name__)
print(psutil.Process().create_time() > 0)
"""


def test_a_process_sees_a_mac(fake_mac: FakeMac) -> None:
    """Else the test above proves nothing."""
    command = [sys.executable, "-c", SEES]
    seen = subprocess.run(command, env=fake_mac.environment, capture_output=True, text=True, check=True)
    first, proc, path, limit, other, connections, own = seen.stdout.splitlines()
    assert first == "darwin False 256"
    assert (proc, path, limit, connections) == ("FileNotFoundError", "OSError", "ValueError", "AccessDenied")
    assert other in ("AccessDenied", "RuntimeError")
    assert own == "True"
