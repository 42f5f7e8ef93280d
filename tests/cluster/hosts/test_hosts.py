"""Hosts of a ring without any other host: what is written, what ssh says, what is sent to hosts."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import ClusterError
from cluster.hosts import hosts as hosts_module
from cluster.hosts.hosts import read_cluster
from cluster.hosts.ssh import CONTROL_ROOT, control_path, describe_failure, make_control_dir, shell_words
from cluster.hosts.worker_setup import Worker, make_constraints, read_changes
from config import SettingsError
from config.checks import start_problems
from config.ring_hosts import parse_worker_hosts, read_hostfile
from tests.cluster.hosts.pretended_hosts import MAC2, WORKER, load


def test_worker_hosts_name_user_ranks_and_ring_address() -> None:
    """All parts but the host may be left away; neighbouring entries of one host are one host."""
    parsed = parse_worker_hosts("mac2, anna@mac3.local:2=192.168.5.3 ,localhost,localhost:2,mac4=ring4")
    assert [(host.name, host.ssh, host.num_ranks, host.address) for host in parsed] == [
        ("mac2", "mac2", 1, None),
        ("mac3.local", "anna@mac3.local", 2, "192.168.5.3"),
        ("localhost", None, 3, None),
        ("mac4", "mac4", 1, "ring4"),
    ]
    assert parse_worker_hosts("") == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("-oProxyCommand=touch", "is not [user@]host"),
        ("-x@mac2", "is not [user@]host"),
        ("mac2:0", "has 0 ranks"),
        ("mac2:17", "has 17 ranks"),
        ("mac2=127.0.0.1", "cannot connect to 127.0.0.1"),
        ("mac2=300.1.1.1", "is not an IPv4 address"),
        ("mac2;rm", "is not [user@]host"),
        ("localhost:1=10.0.0.1", "RING_ADDRESS"),
        ("mac2,mac3,mac2", "named twice; mac2:2 gives it two ranks"),
    ],
)
def test_a_wrong_entry_is_refused_with_its_reason(text: str, said: str) -> None:
    """What could be taken for an option of ssh, or can be no neighbour, gets no further."""
    with pytest.raises(ValueError, match=re.escape(said)):
        parse_worker_hosts(text)


@given(st.text(max_size=30))
def test_no_text_becomes_an_option_of_ssh(text: str) -> None:
    """Whatever passes is a destination that ssh cannot take for something else."""
    try:
        parsed = parse_worker_hosts(text)
    except ValueError:
        return
    for host in parsed:
        if host.ssh:
            assert not host.ssh.startswith("-")
            assert not host.ssh.partition("@")[2].startswith("-")
            assert not set(host.ssh) & set(" '\"\\$`;&|<>()")


def test_a_host_file_of_mlx_is_read_in_both_forms(tmp_path: Path) -> None:
    """One rank an entry, the first host is this machine; several addresses are several cables."""
    entries = [
        {"ssh": "mac1", "ips": ["192.168.5.1", "192.168.6.1"], "rdma": []},
        {"ssh": "mac1", "ips": ["192.168.5.1"]},
        {"ssh": "anna@mac2", "ips": ["192.168.5.2"]},
    ]
    path = tmp_path / "hosts.json"
    for form in (entries, {"backend": "ring", "envs": [], "hosts": entries}):
        path.write_text(json.dumps(form), encoding="utf-8")
        read = read_hostfile(path)
        assert [(host.ssh, host.num_ranks, host.address) for host in read] == [
            (None, 2, "192.168.5.1"),
            ("anna@mac2", 1, "192.168.5.2"),
        ]
    for wrong, said in (
        ("nonsense", "is not JSON"),
        ("[]", "holds no list of hosts"),
        ('[{"ips": []}]', 'host 1: "ssh" must be'),
        ('[{"ssh": "a", "ips": ["127.0.0.1"]}]', "host 1: the other hosts cannot connect to 127.0.0.1"),
    ):
        path.write_text(wrong, encoding="utf-8")
        with pytest.raises(ValueError, match=said):
            read_hostfile(path)


def test_the_cluster_has_this_machine_first_and_ranks_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranks count through the hosts as written; this machine may stand in two places."""
    monkeypatch.setattr(hosts_module, "ssh_host_name", lambda destination: "192.168.5.9")
    written = "anna@mac2:2=192.168.5.2,localhost,mac3"
    cluster = read_cluster(load(tmp_path, WORKER_HOSTS=written, RING_ADDRESS="192.168.5.1"))
    assert [(host.name, host.address, list(cluster.ranks_of(host))) for host in cluster.hosts] == [
        ("localhost", "192.168.5.1", [0]),
        ("mac2", "192.168.5.2", [1, 2]),
        ("localhost", "192.168.5.1", [3]),
        ("mac3", "192.168.5.9", [4]),
    ]
    assert cluster.host_of(3).is_local
    assert (cluster.ring_size, cluster.num_local_ranks, cluster.is_single) == (5, 2, False)
    alone = read_cluster(load(tmp_path, LOCAL_RANKS="2", WORKER_HOSTS="localhost"))
    assert (alone.ring_size, alone.is_single, len(alone.hosts)) == (3, True, 1)


def test_this_machines_address_is_the_one_that_reaches_the_others(tmp_path: Path) -> None:
    """Without RING_ADDRESS the route decides; an address that others cannot reach is refused."""
    with pytest.raises(SettingsError, match=r"RING_ADDRESS = 127.0.0.1 .*cannot connect to"):
        read_cluster(load(tmp_path, WORKER_HOSTS="mac2=192.0.2.7", RING_ADDRESS="127.0.0.1"))
    with pytest.raises(SettingsError, match=r"WORKER_HOSTS: the name nobody.invalid .*mac2=192.168.5.2"):
        read_cluster(load(tmp_path, WORKER_HOSTS="mac2=nobody.invalid"))


def test_a_host_file_that_begins_with_another_machine_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service is started on the first host, and told so where that is another one."""
    entries = [{"ssh": f"mac{n}", "ips": [f"192.168.5.{n}"]} for n in (1, 2)]
    (tmp_path / "hosts.json").write_text(json.dumps(entries), encoding="utf-8")
    settings = load(tmp_path, RING_HOSTFILE="hosts.json")
    monkeypatch.setattr(hosts_module, "own_addresses", lambda: {"192.168.5.2"})
    with pytest.raises(SettingsError, match=r"host 2 \(192.168.5.2\) is this machine"):
        read_cluster(settings)
    monkeypatch.setattr(hosts_module, "own_addresses", lambda: {"192.168.5.1"})
    assert [host.ssh for host in read_cluster(settings).hosts] == [None, "mac2"]


def test_layer_counts_are_compared_with_the_whole_ring(tmp_path: Path) -> None:
    """LAYER_SPLIT counts ranks on all hosts; a wrong number is named with the hosts."""
    assert start_problems(load(tmp_path, WORKER_HOSTS="mac2:2", LAYER_SPLIT="10,10,10")) == []
    (problem,) = start_problems(load(tmp_path, WORKER_HOSTS="mac2:2", LAYER_SPLIT="15,15"))
    assert "has 2 counts, the ring 3 ranks (localhost 1, mac2 2)" in problem.sentence
    (problem,) = start_problems(load(tmp_path, LOCAL_RANKS="8", WORKER_HOSTS="mac2:9"))
    assert "the ring has 17 ranks" in problem.sentence


@pytest.mark.parametrize(
    ("said", "reason", "fix"),
    [
        ("Host key verification failed.", "not known here yet", "ssh anna@mac2 true"),
        (
            "@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key ...",
            "another one",
            "ssh-keygen -R",
        ),
        ("anna@mac2: Permission denied (publickey).", "refuses our key", "ssh-copy-id anna@mac2"),
        ("ssh: Could not resolve hostname mac2: Name or", "name is not known", "WORKER_HOSTS"),
        ("ssh: connect to host mac2 port 22: Connection refused", "nothing accepts ssh", "Remote Login"),
        ("ssh: connect to host mac2 port 22: No route to host", "no way to it", "ping mac2"),
        ("ssh: connect to host mac2 port 22: Connection timed out", "does not answer", "ping mac2"),
        ("Timeout, server mac2 not responding.", "does not answer", "ping mac2"),
        ("something new", "ssh failed (something new)", "ssh anna@mac2 true"),
        ("", "connection was lost", "ssh anna@mac2 true"),
    ],
)
def test_what_ssh_says_becomes_a_sentence_with_what_fixes_it(said: str, reason: str, fix: str) -> None:
    """Each cause has its own words; all name the host."""
    error = describe_failure(MAC2, said)
    assert str(error).startswith("mac2: ")
    assert reason in str(error)
    assert fix in error.fix


def test_a_line_of_sh_reaches_the_host_as_it_is() -> None:
    """The login shell there is handed one quoted word, and never a name that it could take for an option."""
    command = shell_words(MAC2, "echo \"$HOME\" 'a b'", is_shared=False)
    assert command[-3:-1] == ["--", "anna@mac2"]
    assert shlex.split(command[-1]) == ["exec", "/bin/sh", "-c", "echo \"$HOME\" 'a b'"]
    assert "BatchMode=yes" in command
    assert "ControlPath=none" in command


def test_sockets_of_shared_connections_are_short_and_private(tmp_path: Path) -> None:
    """104 bytes are all that macOS allows, 17 of them for a name that ssh makes; others may not look in."""
    folder = CONTROL_ROOT / make_control_dir(tmp_path).name
    long = replace(MAC2, ssh="anna@" + "x" * 200)
    assert len(str(control_path(long, folder))) + 17 < 104
    made = make_control_dir(tmp_path)
    made.chmod(0o755)
    with pytest.raises(ClusterError, match="open to others"):
        make_control_dir(tmp_path)


def test_paths_on_a_worker_are_quoted_and_begin_in_its_home() -> None:
    """`~` is the home folder there; blanks and quotes are part of the name."""
    said = subprocess.run(
        ["/bin/sh", "-c", f"printf %s {WORKER.shell_path('code')}"],
        env={"HOME": "/there"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout == "/there/ring files/it's/code"
    assert Worker(MAC2, "~/ring").rsync_path("code") == "anna@mac2:ring/code/"
    assert Worker(MAC2, "/opt/ring").shell_path() == "/opt/ring"


def test_what_rsync_says_is_read_as_changed_files() -> None:
    """Sent and removed files count; folders and times alone do not."""
    said = (
        "cd+++++++++ config/\n<f+++++++++ config/a b.py\n<f.st...... server.py\n*deleting   spool/old.py\n\n"
    )
    assert read_changes(said) == ["config/a b.py", "server.py", "spool/old.py"]


def test_pip_is_told_the_versions_that_are_here() -> None:
    """Ranks of other versions would be refused at HELLO."""
    constraints = make_constraints()
    assert "mlx-lm==" in constraints
    assert "#" not in constraints
