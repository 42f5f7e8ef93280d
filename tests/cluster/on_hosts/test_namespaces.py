"""The hosts themselves: they are apart, can be cut and rebooted, and nothing of them stays."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from tests.cluster.on_hosts.namespaces import Hosts, remove_stale

ROOT = Path(__file__).resolve().parent.parent.parent.parent
CRASH = """
import os, signal, sys
from pathlib import Path
from tests.cluster.on_hosts.namespaces import Hosts
hosts = Hosts(Path(sys.argv[1])).__enter__()
print(hosts.first.namespace, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def list_namespaces() -> str:
    return subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout


def test_hosts_have_homes_names_and_memory_of_their_own(shared_hosts: Hosts) -> None:
    """ssh from the first leads to another home folder, host name and memory."""
    shared_hosts.second.limit_memory(8 << 30, 3 << 30)
    words = ["ssh", "-o", "BatchMode=yes", "mac2", "hostname; pwd; grep MemAvailable /proc/meminfo"]
    said = shared_hosts.first.run(words, check=True).stdout.split()
    assert said[:2] == ["mac2", str(shared_hosts.second.home)]
    assert said[3] == str((3 << 30) // 1024)


def test_a_cut_host_is_not_reached_until_it_is_healed(shared_hosts: Hosts) -> None:
    """The cable is out, then in again."""
    words = ["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=1", "mac3", "true"]
    shared_hosts.cut(shared_hosts.third)
    assert shared_hosts.first.run(words).returncode == 255
    shared_hosts.heal(shared_hosts.third)
    words[4] = "ConnectTimeout=10"
    assert shared_hosts.first.run(words).returncode == 0


def test_a_reboot_ends_exactly_the_processes_of_the_host(shared_hosts: Hosts) -> None:
    """What was started there by ssh is gone, others go on, and ssh answers again."""
    leave = "nohup sleep 600 >/dev/null 2>&1 & touch stray"
    with shared_hosts.third.popen(["sleep", "600"]) as neighbour:
        shared_hosts.first.run(["ssh", "-o", "BatchMode=yes", "mac2", leave], check=True)
        left = shared_hosts.second.find_leftovers()
        assert "sleep 600" in left.processes and left.files == ("stray",)
        shared_hosts.reboot(shared_hosts.second)
        assert shared_hosts.second.find_leftovers().processes == ()
        assert neighbour.poll() is None
        neighbour.kill()
    shared_hosts.first.run(["ssh", "-o", "BatchMode=yes", "mac2", "rm stray"], check=True)
    assert not shared_hosts.second.find_leftovers().files


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
