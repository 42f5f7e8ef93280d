"""The environment that is made on a worker with real venv and pip; hosts have no network to fetch from."""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.hosts.worker_setup import MARK
from config import REPOSITORY_ROOT as ROOT
from tests.cluster.on_hosts.namespaces import Hosts
from tests.cluster.on_hosts.prepared import WORKER_DIR
from tests.services.waiting import until

pytestmark = pytest.mark.long
# Makes the environment on a host, as `start` does; prints what was told meanwhile and what came of it.
PROGRAM = """
import asyncio, json, sys
from cluster.errors import ClusterError
from cluster.hosts.hosts import Host
from cluster.hosts.ssh import close_connections
from cluster.hosts import worker_setup
from cluster.hosts.worker_setup import Worker, ensure_environment
worker_setup.read_wanted = dict  # requirements.txt there asks for nothing
told = []
worker = Worker(Host(sys.argv[1], sys.argv[1], "10.77.0.2", 1), sys.argv[2], sys.argv[3])
try:
    outcome = asyncio.run(ensure_environment(worker, told.append))
except ClusterError as error:
    outcome = str(error)
asyncio.run(close_connections([worker.host]))
print(json.dumps([told, outcome]))
"""


def ensure(hosts: Hosts, python: str = "") -> tuple[list[str], bool | str]:
    words = [sys.executable, "-c", PROGRAM, "mac2", f"~/{WORKER_DIR}", python]
    ended = hosts.first.run(words, cwd=ROOT, check=True)
    told, outcome = json.loads(ended.stdout)
    return told, outcome


def test_an_environment_is_made_once_and_its_failures_are_sentences(hosts: Hosts) -> None:
    """A Python that is not there, a package that cannot be had, then success, then nothing to do."""
    folder = hosts.second.home / WORKER_DIR
    requirements = folder / "code" / "requirements.txt"
    requirements.parent.mkdir(parents=True)
    told, outcome = ensure(hosts, "python2.7")
    assert outcome == "mac2: WORKER_PYTHON = python2.7 is no Python 3.11 or newer there"

    pip = hosts.second.home / ".config" / "pip" / "pip.conf"
    pip.parent.mkdir(parents=True)
    pip.write_text("[global]\nno-index = true\n", encoding="utf-8")
    requirements.write_text("no-such-package-at-all\n", encoding="utf-8")
    told, outcome = ensure(hosts, sys.executable)
    assert "mac2: pip could not install requirements.txt: ERROR: " in str(outcome)
    assert "no-such-package-at-all" in str(outcome)

    requirements.write_text("# nothing\n", encoding="utf-8")
    told, outcome = ensure(hosts, sys.executable)
    assert outcome is True
    assert told == ["making the virtual environment anew: its installation did not end"]
    assert stat.S_IMODE((folder / "venv").stat().st_mode) == 0o700
    assert ensure(hosts) == ([], False)

    venv = folder / "venv"
    for damage, trouble in (
        (lose_mark, "its installation did not end"),
        (lose_pip, "pip"),
        (lose_python, "its Python does not work"),
    ):
        (venv / "left").touch()
        damage(venv)
        told, outcome = ensure(hosts, sys.executable)
        assert outcome is True
        assert told[0].startswith("making the virtual environment anew: ") and trouble in told[0]
        assert not (venv / "left").exists()
        assert ensure(hosts) == ([], False)

    (venv / MARK).write_text("of another release\n")
    (venv / "left").touch()
    told, outcome = ensure(hosts, sys.executable)
    assert outcome is True
    assert (venv / "left").exists(), "what is only older is renewed in its place"


def lose_mark(venv: Path) -> None:
    """pip was killed."""
    (venv / MARK).unlink()


def lose_pip(venv: Path) -> None:
    """The files of a package are gone."""
    shutil.rmtree(next(venv.glob("lib/*/site-packages/pip")))


def lose_python(venv: Path) -> None:
    """Python was upgraded, and the one that made this is gone."""
    (venv / "bin" / "python").unlink()
    (venv / "bin" / "python").symlink_to("/nowhere/python3")


def test_an_installation_ends_with_whoever_wanted_it(hosts: Hosts) -> None:
    """start is killed while pip waits for a package: nothing of it goes on beside the next one."""
    folder = hosts.second.home / WORKER_DIR
    (folder / "code").mkdir(parents=True)
    (folder / "code" / "requirements.txt").write_text("some-package\n", encoding="utf-8")
    pip = hosts.second.home / ".config" / "pip" / "pip.conf"
    pip.parent.mkdir(parents=True)
    silent = socket_that_says_nothing(hosts)
    pip.write_text("[global]\nindex-url = http://10.77.0.2:8001/simple\ntimeout = 300\n", encoding="utf-8")
    words = [sys.executable, "-c", PROGRAM, "mac2", f"~/{WORKER_DIR}", sys.executable]
    with hosts.first.popen(words, cwd=ROOT) as program:
        until(lambda: runs_pip(hosts))
        program.kill()
    until(lambda: not runs_pip(hosts))
    silent.kill()
    silent.communicate()


def socket_that_says_nothing(hosts: Hosts) -> subprocess.Popen[str]:
    """A package index on the second host that accepts and never answers."""
    program = "import socket; s = socket.create_server(('10.77.0.2', 8001)); print('on', flush=True); input()"
    silent = hosts.second.popen([sys.executable, "-c", program])
    assert silent.stdout is not None
    silent.stdout.readline()
    return silent


def runs_pip(hosts: Hosts) -> bool:
    lines = hosts.second.find_leftovers(within=[WORKER_DIR]).processes
    return any("-m pip install" in line for line in lines)
