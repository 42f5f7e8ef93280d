"""Troubles of a worker that pass by themselves, on hosts with real ssh daemons: nobody types a command.

Each comes together with a cable that is out for 15 seconds, after which everything on the hosts is looked at
again.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

from tests.cluster.on_hosts.namespaces import Hosts, NamespaceHost
from tests.cluster.on_hosts.prepared import WORKER_DIR
from tests.cluster.on_hosts.ring_on_hosts import RingOnHosts, make_ring

pytestmark = pytest.mark.long
CUT_S = 15.0
DISK = "64m"
GB = 10**9
# WORKER_DIR on a small disk of its own; models stay where they are.
SMALL_DISK = """
set -e
cd "$1"
mkdir ../disk
mount -t tmpfs -o size="$2" tmpfs ../disk
cp -a code venv ../disk/ 2>/dev/null || cp -a venv ../disk/
mkdir ../disk/models
mount --bind models ../disk/models
mount --rbind ../disk "$1"
"""


@pytest.fixture(scope="module")
def ring(shared_hosts: Hosts) -> Iterator[RingOnHosts]:
    """A ring that is ready, with a small disk on the second host; each test leaves it so."""
    made = make_ring(shared_hosts)
    second = shared_hosts.second
    for host in shared_hosts:
        host.limit_memory(8 * GB, 4 * GB)
    second.run(["sh", "-c", SMALL_DISK, "sh", second.home / WORKER_DIR, DISK], check=True)
    made.check("start")
    yield made
    made.run("stop")


def fill_disk(host: NamespaceHost) -> None:
    host.run(["sh", "-c", f"cat /dev/zero >{WORKER_DIR}/ballast"])
    assert host.run(["sh", "-c", f"echo more >>{WORKER_DIR}/ballast"]).returncode


def free_disk(host: NamespaceHost) -> None:
    host.run(["rm", f"{WORKER_DIR}/ballast"], check=True)


def replace_code(host: NamespaceHost) -> None:
    """Another checkout has put its own code there."""
    host.run(["sh", "-c", f"echo '# another' >>{WORKER_DIR}/code/distributed/engine/engine.py"], check=True)


def cut_cable(ring: RingOnHosts) -> int:
    """Cut the second host off for a while; the epoch before."""
    epoch = int(ring.read()["epoch"])
    ring.hosts.cut(ring.hosts.second)
    threading.Event().wait(CUT_S)
    ring.hosts.heal(ring.hosts.second)
    return epoch


def wait_for_reason(ring: RingOnHosts, words: str) -> None:
    """Until the service waits for that and says so."""
    ring.wait_until(lambda said: said["state"] == "degraded" and words in str(said["reason"]))
    shown = ring.run("status")
    assert shown.returncode == 1
    assert words in shown.stdout
    assert "failed tries: " in shown.stdout


def test_a_full_disk_keeps_nobody_away_who_needs_nothing_new(ring: RingOnHosts) -> None:
    """Code, environment and model are there: nothing is to be written, so nothing is asked for."""
    fill_disk(ring.hosts.second)
    with ring.asking():
        ring.wait_for_epoch_after(cut_cable(ring))
    free_disk(ring.hosts.second)


def test_a_full_disk_is_waited_for(ring: RingOnHosts) -> None:
    """Code has to be copied and cannot be: the ring is back when there is room, and was never given up."""
    ring.hosts.second.run(["rm", f"{WORKER_DIR}/code/distributed/engine/engine.py"], check=True)
    fill_disk(ring.hosts.second)
    with ring.asking():
        epoch = cut_cable(ring)
        wait_for_reason(ring, "No space left")
        ring.wait_until(lambda said: said["is_stuck"])
        free_disk(ring.hosts.second)
        ring.wait_for_epoch_after(epoch)


def test_short_memory_is_waited_for(ring: RingOnHosts) -> None:
    """Somebody else uses the memory of a host for a while."""
    ring.hosts.second.limit_memory(8 * GB, GB // 10)
    with ring.asking():
        epoch = cut_cable(ring)
        wait_for_reason(ring, "mac2 has")
        ring.hosts.second.limit_memory(8 * GB, 4 * GB)
        ring.wait_for_epoch_after(epoch)


@pytest.mark.parametrize("trouble", ["kill", "cut"])
def test_code_that_was_replaced_is_put_back(ring: RingOnHosts, trouble: str) -> None:
    """That rank refuses the next epoch, or the epoch begins with a check of everything: both repair it."""
    replace_code(ring.hosts.second)
    with ring.asking():
        if trouble == "kill":
            epoch = ring.read()["epoch"]
            ring.find_rank(2).send(signal.SIGKILL)
        else:
            epoch = cut_cable(ring)
        ring.wait_for_epoch_after(epoch)
    said = ring.logs()
    assert "differs from rank 0 in its code" in said or "code: mac2 distributed/engine/engine.py" in said
