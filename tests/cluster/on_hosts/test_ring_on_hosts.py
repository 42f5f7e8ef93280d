"""A ring over three hosts with real ssh daemons, from its start to its end, and what may happen meanwhile."""

from __future__ import annotations

import re
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.on_hosts.namespaces import Hosts
from tests.cluster.on_hosts.prepared import WORKER_DIR
from tests.cluster.on_hosts.ring_on_hosts import RingOnHosts, make_ring
from tests.fakes.checkpoints import shared_checkpoint

NEVER_THERE = ("spool", "state", "var", ".env", "ring.secret", "tests", ".git", "cluster", "frontdoor")


@pytest.fixture(scope="module")
def ring(shared_hosts: Hosts) -> Iterator[RingOnHosts]:
    """A ring of a tiny model that is ready; each test leaves it so."""
    made = make_ring(shared_hosts, MODEL_REPO=str(shared_checkpoint("llama")))
    made.check("start")
    yield made
    made.run("stop")


def test_every_host_has_its_part_and_status_shows_it(ring: RingOnHosts) -> None:
    """Three ranks on three hosts answer; status has a row for each, with host, address and its own pid."""
    shown = ring.check("status")
    rows = {line.split()[0]: line.split()[1:4] for line in shown.splitlines() if re.match(r"[012] ", line)}
    assert [rows[rank][:2] for rank in "012"] == [
        ["localhost", "10.77.0.1"],
        ["mac2", "10.77.0.2"],
        ["mac3", "10.77.0.3"],
    ]
    assert int(rows["1"][2]) == ring.find_rank(1).pid
    assert "Every rank took part (3 of 3)." in ring.check("test", "Say hello.", "--max-tokens", "4")


def test_what_lies_on_the_hosts_is_private_and_no_secret(ring: RingOnHosts) -> None:
    """Code and folders are readable by their owner only; spool, settings, tests and secrets stay at home."""
    for host in (ring.hosts.second, ring.hosts.third):
        folder = host.home / WORKER_DIR
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        for path in (folder / "code").rglob("*"):
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
        assert not set(NEVER_THERE[1:]) & {path.name for path in (folder / "code").iterdir()}
        secret = (ring.state / "ring.secret").read_text().strip()
        for pid in host.find_pids():
            assert secret not in read_quietly(Path(f"/proc/{pid}/cmdline"))
            assert secret not in read_quietly(Path(f"/proc/{pid}/environ"))


def read_quietly(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def test_logs_of_all_ranks_are_merged_by_time(ring: RingOnHosts) -> None:
    """Lines of ranks on other hosts come through ssh and stand among those of this one, in order."""
    lines = ring.check("logs", "-n", "500").splitlines()
    assert any(" rank 1: " in line for line in lines)
    assert any(" rank 2: " in line for line in lines)
    times = [line[:23] for line in lines if re.match(r"\d{4}-\d\d-\d\d ", line)]
    assert times == sorted(times)


def test_a_live_setting_reaches_ranks_on_other_hosts(ring: RingOnHosts) -> None:
    """An edit of .env is told to every rank over the pipe that is there already."""
    epoch = ring.read()["epoch"]
    (ring.root / ".env").write_text("LOG_LEVEL=DEBUG\n", encoding="utf-8")
    ring.wait_until(lambda said: said["settings"]["LOG_LEVEL"] == "DEBUG")
    (ring.root / ".env").unlink()
    ring.wait_until(lambda said: said["settings"]["LOG_LEVEL"] == "INFO")
    assert ring.read()["epoch"] == epoch


def test_a_killed_rank_on_another_host_is_named_with_its_host(ring: RingOnHosts) -> None:
    """The signal comes through ssh; a new ring is built and every request is answered."""
    epoch = ring.read()["epoch"]
    with ring.asking():
        ring.find_rank(2).send(signal.SIGKILL)
        ring.wait_for_epoch_after(epoch)
    assert "rank 2 on mac3 was killed by SIGKILL" in ring.logs()


def test_a_cut_cable_is_shown_and_the_ring_is_back_when_it_is_healed(ring: RingOnHosts) -> None:
    """The host is named in status and /health, the queue is kept, its ranks end there by themselves."""
    epoch, cut_off = ring.read()["epoch"], ring.find_rank(1)
    with ring.asking():
        ring.hosts.cut(ring.hosts.second)
        said = ring.wait_until(lambda said: said["state"] == "degraded" and "mac2: " in str(said["reason"]))
        assert "check that it is on" in said["reason"]
        assert ring.run("status").returncode == 1
        assert "mac2: " in ring.health()["supervisor"]["reason"]
        assert cut_off.wait(30.0), "a rank that hears nobody ends"
        ring.hosts.heal(ring.hosts.second)
        ring.wait_for_epoch_after(epoch)


def test_a_host_that_boots_again_is_taken_back(ring: RingOnHosts) -> None:
    """A host loses its power and comes back: nobody has to do anything, and nothing accepted is lost."""
    epoch = ring.read()["epoch"]
    with ring.asking():
        ring.hosts.reboot(ring.hosts.third)
        ring.wait_for_epoch_after(epoch)


def test_stop_leaves_nothing_on_any_host(ring: RingOnHosts) -> None:
    """After stop there is no process, no port and no file outside of the given folders, on any host."""
    ring.check("stop")
    assert ring.find_leftovers() == {}


def test_a_start_names_the_host_that_cannot_be_reached(ring: RingOnHosts) -> None:
    """It is refused before anything is started, with the command that fixes it."""
    ring.hosts.third.stop_daemon()
    refused = ring.run("start")
    ring.hosts.third.start_daemon()
    assert refused.returncode == 1
    assert "mac3: nothing accepts ssh there: switch it on there" in refused.stderr
    assert ring.find_leftovers() == {}
