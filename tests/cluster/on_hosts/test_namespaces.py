"""The hosts themselves: nothing of them stays, even of a run that was killed."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from config import REPOSITORY_ROOT as ROOT
from tests.cluster.on_hosts.namespaces import Hosts, remove_stale

CRASH = """
import os, signal, sys
from pathlib import Path
from config import REPOSITORY_ROOT as ROOT
from tests.cluster.on_hosts.namespaces import Hosts
hosts = Hosts(Path(sys.argv[1])).__enter__()
print(hosts.first.namespace, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def list_namespaces() -> str:
    return subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout


def test_what_a_killed_run_has_left_is_removed(can_make_hosts: None, tmp_path: Path) -> None:
    """Namespaces of a dead process go with everything in them; those of living ones stay."""
    words = [sys.executable, "-c", CRASH, str(tmp_path / "crashed")]
    with Hosts(tmp_path / "living") as living:
        crashed = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
        assert crashed.returncode == -signal.SIGKILL, crashed.stderr
        namespace = crashed.stdout.strip()
        assert namespace in list_namespaces()
        remove_stale()
        assert namespace not in list_namespaces()
        assert living.first.namespace in list_namespaces()
    assert living.first.namespace not in list_namespaces()
