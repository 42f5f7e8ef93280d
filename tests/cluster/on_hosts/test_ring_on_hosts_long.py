"""What else may happen to a ring over three hosts: minutes, with the same real ssh daemons."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator

import pytest

from cluster.processes import ProcessIdentity
from tests.cluster.on_hosts.namespaces import Hosts
from tests.cluster.on_hosts.prepared import WORKER_DIR
from tests.cluster.on_hosts.ring_on_hosts import RingOnHosts, make_ring
from tests.services.waiting import until

pytestmark = pytest.mark.long
# On an idle machine of two cores; others may take most of it from us.
START_LIMIT_S, SECOND_START_LIMIT_S, BUSY_MACHINE = 20.0, 10.0, 5.0
END_LIMIT_S = 60.0


@pytest.fixture(scope="module")
def ring(shared_hosts: Hosts) -> Iterator[RingOnHosts]:
    """A ring that is ready; each test leaves it so."""
    made = make_ring(shared_hosts)
    began = time.monotonic()
    made.check("start")
    assert time.monotonic() - began < START_LIMIT_S * BUSY_MACHINE
    yield made
    made.run("stop")


def count_ranks(ring: RingOnHosts, number: int) -> int:
    """Rank processes on a host."""
    lines = ring.hosts[number].find_leftovers(within=[WORKER_DIR]).processes
    return sum(line.startswith("../venv/bin/python server.py") for line in lines)


def test_a_stopped_rank_on_another_host_is_killed_there(ring: RingOnHosts) -> None:
    """End of file does not end a stopped process: a second ssh command does, by pid and start time."""
    epoch, stopped = ring.read()["epoch"], ring.find_rank(1)
    stopped.send(signal.SIGSTOP)
    ring.wait_for_epoch_after(epoch)
    assert not stopped.is_alive()


def test_a_killed_supervisor_leaves_nothing_on_any_host(ring: RingOnHosts) -> None:
    """The end of its pipes ends ssh, and with it the ranks there; start works again."""
    said = ring.read()
    ranks = [ring.find_rank(1), ring.find_rank(2)]
    ProcessIdentity(said["pid"], said["start_time"]).send(signal.SIGKILL)
    for rank in ranks:
        assert rank.wait(30.0)
    ring.check("start")
    assert ring.read()["epoch"] > said["epoch"]


def test_a_first_host_without_power_leaves_no_ranks_on_the_others(ring: RingOnHosts) -> None:
    """No end of file comes from a machine that is off: ranks end for want of pings."""
    ring.hosts.reboot(ring.first, stays_down=True)
    until(lambda: not count_ranks(ring, 1) + count_ranks(ring, 2), END_LIMIT_S)
    ring.hosts.boot(ring.first)
    ring.check("start")


def test_a_host_that_is_away_does_not_keep_stop_from_ending(ring: RingOnHosts) -> None:
    """It is named, its ranks end by themselves, and a start with it still away is refused."""
    ranks = [ring.find_rank(1), ring.find_rank(2)]
    ring.hosts.cut(ring.hosts.third)
    ring.wait_until(lambda said: said["state"] == "degraded" and "mac3: " in str(said["reason"]))
    assert "mac3: " in ring.check("stop")
    assert "mac3: " in ring.run("start").stderr
    for rank in ranks:
        assert rank.wait(END_LIMIT_S)
    ring.hosts.heal(ring.hosts.third)
    ring.check("start")


def test_a_restart_takes_other_hosts_and_refuses_nobody(ring: RingOnHosts) -> None:
    """A new list of hosts, with this machine in two places, while somebody asks."""
    before = ring.settings["WORKER_HOSTS"]
    with ring.asking():
        ring.settings["WORKER_HOSTS"] = "root@mac3=10.77.0.3,localhost,mac2"
        ring.check("restart")
        said = ring.read()["processes"]
        hosts = [entry["host"] for entry in said if entry["name"].startswith("rank ")]
        assert hosts == ["localhost", "mac3", "localhost", "mac2"]
        ring.settings["WORKER_HOSTS"] = before
        ring.check("restart")


def test_a_second_start_sends_only_what_changed(ring: RingOnHosts) -> None:
    """One changed file is one file on the wire, and the rehearsal says so beforehand."""
    ring.check("stop")
    with (ring.root / "prompts" / "tokenizer.py").open("a", encoding="utf-8") as file:
        file.write("# changed\n")
    shown = ring.check("start", "--dry-run")
    assert f"mac2: code to ~/{WORKER_DIR}/code: prompts/tokenizer.py" in shown
    assert ring.find_leftovers() == {}
    began = time.monotonic()
    shown = ring.check("start")
    assert time.monotonic() - began < SECOND_START_LIMIT_S * BUSY_MACHINE
    assert "code       mac2 prompts/tokenizer.py, mac3 prompts/tokenizer.py" in shown
    ring.check("stop")


def test_a_host_file_of_mlx_is_served(ring: RingOnHosts) -> None:
    """As mlx.distributed_config writes it: the first host is this machine."""
    entries = [
        {"ssh": name, "ips": [f"10.77.0.{number}"], "rdma": []} for name, number in (("mac1", 1), ("mac3", 3))
    ]
    (ring.root / "hosts.json").write_text(json.dumps({"backend": "ring", "hosts": entries}), encoding="utf-8")
    del ring.settings["WORKER_HOSTS"]
    ring.settings["RING_HOSTFILE"] = "hosts.json"
    ring.check("start")
    assert "Every rank took part (2 of 2)." in ring.check("test", "Say hello.", "--max-tokens", "4")
    ring.check("stop")
    assert ring.find_leftovers() == {}
