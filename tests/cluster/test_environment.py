"""The environment that is made on a worker with real venv and pip; hosts have no network to fetch from."""

from __future__ import annotations

import json
import stat
import sys
from pathlib import Path

import pytest

from tests.cluster.namespaces import Hosts
from tests.cluster.prepared import WORKER_DIR

pytestmark = pytest.mark.long
ROOT = Path(__file__).resolve().parent.parent.parent
# Makes the environment on a host, as `start` does; prints what was told meanwhile and what came of it.
PROGRAM = """
import asyncio, json, sys
from cluster.errors import ClusterError
from cluster.hosts import Host
from cluster.ssh import close_connections
from cluster.workers import Worker, ensure_environment
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
    assert told == ["making the virtual environment"]
    assert stat.S_IMODE((folder / "venv").stat().st_mode) == 0o700
    assert ensure(hosts) == ([], False)
