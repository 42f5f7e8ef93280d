"""`doctor` on three hosts with real ssh daemons: what is well, what is wrong, and what fixes it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from cluster.hosts.worker_setup import MARK
from config import REPOSITORY_ROOT as ROOT
from tests.cluster.on_hosts.namespaces import Hosts, NamespaceHost
from tests.cluster.on_hosts.prepared import WORKER_DIR, prepare_environment

API_PORT = 8100
WORKERS = "mac2,root@mac3"


class Answer:
    """What `doctor --json` said."""

    def __init__(self, exit_code: int, said: dict[str, Any]) -> None:
        self.exit_code = exit_code
        self.said = said

    def find(self, host: str, check: str) -> dict[str, Any]:
        found = [f for f in self.said["findings"] if (f["host"], f["check"]) == (host, check)]
        assert len(found) == 1, json.dumps(self.said["findings"], indent=1)
        return dict(found[0])

    @property
    def failed(self) -> set[tuple[str, str]]:
        return {(f["host"], f["check"]) for f in self.said["findings"] if f["level"] == "failed"}


def make_arguments(hosts: Hosts, *words: str, workers: str = WORKERS) -> list[str]:
    state_dir = hosts.first.home / "state"
    settings = {"WORKER_HOSTS": workers, "STATE_DIR": str(state_dir), "API_PORT": str(API_PORT)}
    settings["MODEL_REPO"] = "builtin:smollm2-135m"
    flags = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    return [sys.executable, "-m", "cluster", "doctor", *flags, *words]


def ask(hosts: Hosts, *words: str, workers: str = WORKERS) -> Answer:
    """Run doctor on the first host."""
    ended = hosts.first.run(make_arguments(hosts, "--json", *words, workers=workers), cwd=ROOT)
    assert ended.stdout, ended.stderr
    return Answer(ended.returncode, json.loads(ended.stdout))


@pytest.fixture(scope="module")
def ready_hosts(shared_hosts: Hosts) -> Hosts:
    """Three hosts with environments on the workers."""
    for host in (shared_hosts.second, shared_hosts.third):
        prepare_environment(host)
    return shared_hosts


@pytest.fixture
def hosts_again(ready_hosts: Hosts) -> Iterator[Hosts]:
    """The same hosts, put in order after the test."""
    key = (ready_hosts.second.home / ".ssh" / "authorized_keys").read_text(encoding="ascii")
    known = (ready_hosts.first.home / ".ssh" / "known_hosts").read_text(encoding="ascii")
    yield ready_hosts
    (ready_hosts.second.home / ".ssh" / "authorized_keys").write_text(key, encoding="ascii")
    (ready_hosts.first.home / ".ssh" / "known_hosts").write_text(known, encoding="ascii")
    for host in ready_hosts:
        host.end_processes()
        ready_hosts.boot(host)


def test_healthy_hosts_are_all_asked_and_nothing_is_left_there(ready_hosts: Hosts) -> None:
    """Three prepared hosts: nothing failed, versions compared, every link measured; no file, process or port
    is left anywhere.
    """
    answer = ask(ready_hosts)
    assert answer.exit_code == 0 and answer.said["ok"], answer.failed
    assert "mlx " in answer.find("mac2", "packages")["text"]
    assert "10.77.0.3 (eth0" in answer.find("mac3", "ring")["text"]
    pairs = [(link["source"], link["target"]) for link in answer.said["links"]]
    assert pairs == [("localhost", "mac2"), ("mac2", "mac3"), ("mac3", "localhost")]
    assert all(link["send_mbps"] > 0 and link["latency_us"] > 0 for link in answer.said["links"])
    assert {host["hostname"] for host in answer.said["hosts"]} == {"mac1", "mac2", "mac3"}
    for host in ready_hosts:
        assert not (left := host.find_leftovers(within=[WORKER_DIR])), f"{host.name}: {left}"


def test_a_dead_host_another_version_and_a_taken_port_are_told_apart(hosts_again: Hosts) -> None:
    """Each trouble is one sentence with what fixes it, and does not hide the others."""
    hosts = hosts_again
    prepare_environment(hosts.second, versions={"mlx": "0.1.0"})
    hosts.cut(hosts.third)
    words = [sys.executable, "-u", "-m", "http.server", str(API_PORT), "--bind", "127.0.0.1"]
    with hosts.first.popen(words) as taker:
        assert taker.stdout is not None
        assert "Serving HTTP" in taker.stdout.readline()
        answer = ask(hosts)
        taker.kill()
    prepare_environment(hosts.second)
    assert answer.exit_code == 1
    assert answer.failed == {("localhost", "api"), ("mac3", "ssh")}
    assert "is taken" in answer.find("localhost", "api")["text"]
    assert "mlx is 0.1.0 there and" in answer.find("mac2", "packages")["text"]
    assert answer.find("mac2", "packages")["level"] == "note", "start fixes it"
    assert answer.find("mac2", "packages")["mend"] == "./launch.sh doctor --fix"
    assert "does not answer" in answer.find("mac3", "ssh")["text"]
    assert answer.find("localhost", "link")["level"] in ("ok", "note"), "the living neighbours are measured"


def test_a_refused_key_and_an_unknown_host_key_are_told_apart_and_not_mended(hosts_again: Hosts) -> None:
    """A host that refuses our key, and one whose key we do not know, with its fingerprint. Not even --fix
    accepts a key that only the network vouches for.
    """
    hosts = hosts_again
    (hosts.second.home / ".ssh" / "authorized_keys").write_text("", encoding="ascii")
    forget_host_key(hosts, hosts.third)
    known = hosts.first.home / ".ssh" / "known_hosts"
    before = known.read_text(encoding="ascii")
    answer = ask(hosts, "--fix")
    assert answer.failed == {("mac2", "ssh"), ("mac3", "ssh")}
    assert "refuses our key" in answer.find("mac2", "ssh")["text"]
    assert answer.find("mac2", "ssh")["mend"].endswith("ssh-copy-id mac2")
    assert read_fingerprint(hosts.third) in answer.find("mac3", "ssh")["text"]
    assert answer.find("mac3", "ssh")["mend"].endswith("ssh root@mac3 true")
    assert known.read_text(encoding="ascii") == before


def test_what_is_wrong_with_a_host_is_told_apart(hosts_again: Hosts) -> None:
    """Remote Login that is off, an address in the ring that the host does not have, and an environment on
    which pip was killed: start fixes that one.
    """
    hosts_again.second.stop_daemon()
    (hosts_again.third.home / WORKER_DIR / "venv" / MARK).unlink()
    answer = ask(hosts_again, workers="mac2,mac3=10.77.0.9")
    prepare_environment(hosts_again.third)
    assert answer.failed == {("mac2", "ssh"), ("mac3", "ring")}
    assert "Remote Login" in answer.find("mac2", "ssh")["mend"]
    assert "has 10.77.0.3 (eth0, ethernet)" in answer.find("mac3", "ring")["text"]
    found = answer.find("mac3", "packages")
    assert (found["level"], found["mend"]) == ("note", "./launch.sh doctor --fix")
    assert "`start` makes a new one (its installation did not end)" in found["text"]


def test_fix_brings_the_code_and_makes_logs_private(hosts_again: Hosts) -> None:
    """--fix copies our code to WORKER_DIR, takes others' rights, and touches nothing else."""
    log_dir = hosts_again.first.home / "state" / "logs"
    log_dir.mkdir(parents=True)
    log_dir.chmod(0o755)
    ended = hosts_again.first.run(make_arguments(hosts_again, "--fix", workers="mac2"), cwd=ROOT)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert f"fixed: chmod 700 {log_dir}" in ended.stdout
    assert log_dir.stat().st_mode & 0o077 == 0
    assert (hosts_again.second.home / WORKER_DIR / "code" / "server.py").is_file()
    assert not hosts_again.second.find_leftovers(within=[WORKER_DIR])
    assert "ready for ./launch.sh start" in ended.stdout


def test_a_settings_mistake_is_told_before_anybody_is_asked(ready_hosts: Hosts) -> None:
    """A WORKER_HOSTS that cannot be read ends with the key and the entry, and exit code 2."""
    ended = ready_hosts.first.run(make_arguments(ready_hosts, workers="mac2:many"), cwd=ROOT)
    assert ended.returncode == 2
    assert "WORKER_HOSTS" in ended.stderr and "mac2:many" in ended.stderr


def forget_host_key(hosts: Hosts, host: NamespaceHost) -> None:
    known = hosts.first.home / ".ssh" / "known_hosts"
    lines = known.read_text(encoding="ascii").splitlines()
    kept = [line for line in lines if not line.startswith(f"{host.name},")]
    known.write_text("\n".join(kept) + os.linesep, encoding="ascii")


def read_fingerprint(host: NamespaceHost) -> str:
    shown = host.run(["ssh-keygen", "-lf", host.etc / "host_key.pub"], check=True).stdout
    return shown.split()[1]
