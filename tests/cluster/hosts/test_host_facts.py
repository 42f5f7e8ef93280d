"""What a host says of itself: parsers of what the systems' commands print, and the program as it is sent."""

from __future__ import annotations

import ast
import asyncio
import json
import platform
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.hosts.hosts import Host
from cluster.hosts.probe import make_facts, make_python_command, probe
from cluster.hosts.remote_program import make_program
from cluster.hosts.remote_scripts import facts
from cluster.hosts.worker_setup import NO_PYTHON, find_python_script
from config.live import load_for_looking

VM_STAT = """\
Mach Virtual Memory Statistics: (page size of 16384 bytes)
Pages free:                                7161.
Pages active:                            355027.
Pages inactive:                          350101.
Pages speculative:                         4387.
Pages throttled:                              0.
Pages wired down:                        146223.
"Translation faults":                 987654321.
Pages copy-on-write:                   12345678.
"""

HARDWARE_PORTS = """\

Hardware Port: Ethernet
Device: en0
Ethernet Address: 00:11:22:33:44:55

Hardware Port: Thunderbolt Bridge
Device: bridge0
Ethernet Address: 36:11:22:33:44:00

Hardware Port: Wi-Fi
Device: en1
Ethernet Address: 00:11:22:33:44:56

Hardware Port: Thunderbolt 1
Device: en2
Ethernet Address: 36:11:22:33:44:01

VLAN Configurations
===================
"""

IFCONFIG = """\
lo0: flags=8049<UP,LOOPBACK,RUNNING,MULTICAST> mtu 16384
\tinet 127.0.0.1 netmask 0xff000000
en0: flags=8863<UP,BROADCAST,SMART,RUNNING,SIMPLEX,MULTICAST> mtu 1500
\tether 00:11:22:33:44:55
\tinet6 fe80::1%en0 prefixlen 64 secured scopeid 0x4
\tmedia: autoselect (10Gbase-T <full-duplex>)
\tstatus: inactive
en1: flags=8863<UP,BROADCAST,SMART,RUNNING,SIMPLEX,MULTICAST> mtu 1500
\tinet 192.168.1.23 netmask 0xffffff00 broadcast 192.168.1.255
\tmedia: autoselect
\tstatus: active
bridge0: flags=8863<UP,BROADCAST,SMART,RUNNING,SIMPLEX,MULTICAST> mtu 1500
\toptions=63<RXCSUM,TXCSUM,TSO4,TSO6>
\tinet 192.168.5.1 netmask 0xffffff00 broadcast 192.168.5.255
\tmedia: <unknown type>
\tstatus: active
"""


def test_free_memory_of_a_mac_is_what_it_gives_up_at_need() -> None:
    """Free, speculative and inactive pages of vm_stat, times its page size."""
    assert facts.parse_vm_stat(VM_STAT) == 16384 * (7161 + 350_101 + 4387)
    assert facts.parse_vm_stat("vm_stat: command not found") is None


def test_interfaces_of_a_mac_have_kind_address_speed_and_state() -> None:
    """networksetup names the ports, ifconfig the addresses; loopback is left out."""
    ports = facts.parse_hardware_ports(HARDWARE_PORTS)
    assert ports == {
        "en0": "Ethernet",
        "bridge0": "Thunderbolt Bridge",
        "en1": "Wi-Fi",
        "en2": "Thunderbolt 1",
    }
    found = {entry.pop("name"): entry for entry in facts.parse_ifconfig(IFCONFIG, ports)}
    assert found == {
        "en0": {"kind": "ethernet", "addresses": [], "speed_mbps": 10_000, "is_up": False},
        "en1": {"kind": "wifi", "addresses": ["192.168.1.23"], "speed_mbps": None, "is_up": True},
        "bridge0": {"kind": "thunderbolt", "addresses": ["192.168.5.1"], "speed_mbps": None, "is_up": True},
    }


@pytest.mark.parametrize(
    ("media", "mbps"),
    [("1000baseT <full-duplex>", 1000), ("2500Base-T", 2500), ("10Gbase-T", 10_000), ("none", None)],
)
def test_speed_is_read_from_the_media_line(media: str, mbps: int | None) -> None:
    """All of Apple's ways to write it."""
    assert facts.parse_media(f"en0: flags\n\tmedia: autoselect ({media})\n") == mbps


@pytest.mark.parametrize(
    ("port", "kind"),
    [
        ("Thunderbolt Bridge", "thunderbolt"),
        ("Thunderbolt 3", "thunderbolt"),
        ("Thunderbolt Ethernet Slot 1", "ethernet"),
        ("USB 10/100/1000 LAN", "ethernet"),
        ("Wi-Fi", "wifi"),
        ("iPhone USB", "other"),
    ],
)
def test_kind_of_a_port_of_a_mac_is_told_by_its_name(port: str, kind: str) -> None:
    """A Thunderbolt adapter for Ethernet is Ethernet."""
    assert facts.find_mac_kind(port) == kind


def test_state_of_the_mac_firewall_is_read_from_its_words() -> None:
    """On in either of its two ways, off, or not told."""
    assert facts.parse_mac_firewall("Firewall is enabled. (State = 1)") is True
    assert facts.parse_mac_firewall("Firewall is disabled. (State = 0)") is False
    assert facts.parse_mac_firewall("") is None


def test_memory_of_linux_is_total_and_available() -> None:
    """MemAvailable, not MemFree."""
    text = "MemTotal:       16000000 kB\nMemFree:          500000 kB\nMemAvailable:    9000000 kB\n"
    assert facts.parse_meminfo(text) == (16_000_000 * 1024, 9_000_000 * 1024)


@pytest.mark.parametrize(
    ("own", "folder", "names"),
    [
        ("0::/box/inner\n", "box", ("memory.max", "memory.current")),
        ("4:cpu,memory:/box\n", "memory/box", ("memory.limit_in_bytes", "memory.usage_in_bytes")),
    ],
)
def test_limits_of_control_groups_count(
    tmp_path: Path, own: str, folder: str, names: tuple[str, str]
) -> None:
    """Both versions, any level above the process; what the kernel can drop is not used memory."""
    group = tmp_path / folder
    group.mkdir(parents=True)
    (group / names[0]).write_text("4000000000\n", encoding="ascii")
    (group / names[1]).write_text("1500000000\n", encoding="ascii")
    (group / "memory.stat").write_text("anon 1\ninactive_file 500000000\n", encoding="ascii")
    assert facts.read_cgroup_limits(tmp_path, own) == [(4_000_000_000, 1_000_000_000)]


def test_a_control_group_without_a_limit_is_none(tmp_path: Path) -> None:
    """`max` of version 2 and the huge number of version 1."""
    (tmp_path / "memory.max").write_text("max\n", encoding="ascii")
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("9223372036854771712\n", encoding="ascii")
    (tmp_path / "memory" / "memory.usage_in_bytes").write_text("5\n", encoding="ascii")
    assert facts.read_cgroup_limits(tmp_path, "0::/\n3:memory:/\n") == []


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("rsync  version 3.2.7  protocol version 31\nCopyright", "3.2.7"),
        ("rsync  version 2.6.9  protocol version 29\n", "2.6.9"),
        ("openrsync: protocol version 29\nrsync version 2.6.9 compatible\n", "2.6.9 (openrsync)"),
        ("", None),
    ],
)
def test_every_kind_of_rsync_is_recognised(text: str, version: str | None) -> None:
    """Samba's, the old one of macOS, and openrsync of newer ones."""
    assert facts.parse_rsync(text) == version


def test_addresses_of_linux_come_from_ip() -> None:
    """Nothing where the program is missing or prints something else."""
    text = '[{"ifname":"eth0","addr_info":[{"local":"10.0.0.2"},{"local":"10.0.0.3"}]},{"ifname":"lo"}]'
    assert facts.parse_ip_addresses(text) == {"eth0": ["10.0.0.2", "10.0.0.3"], "lo": []}
    assert facts.parse_ip_addresses("Object unknown") == {}


def test_free_ports_are_on_the_address_and_nobody_has_them(capsys: pytest.CaptureFixture[str]) -> None:
    """As many as asked for, alone or among all facts; an address of another machine is told."""
    facts.main({"address": "127.0.0.1", "num_ports": 3})
    answer = json.loads(capsys.readouterr().out)
    assert len(set(answer["free_ports"])) == 3 and answer["port_error"] is None
    for port in answer["free_ports"]:
        socket.create_server(("127.0.0.1", port)).close()
    assert facts.find_free_ports("192.0.2.77", 1) == ([], "no such address")


def test_this_machine_answers_as_any_host(tmp_path: Path) -> None:
    """The program runs in an isolated Python and tells of the environment it runs in."""
    settings = load_for_looking({"STATE_DIR": str(tmp_path / "state")}, tmp_path)
    host = Host("localhost", None, "127.0.0.1", 2)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}", encoding="ascii")
    told = asyncio.run(probe(host, settings, model_folder=str(tmp_path / "model")))
    assert told.is_new_enough and "mlx" in told.versions
    assert told.free_memory_bytes and told.total_memory_bytes
    assert told.free_memory_bytes <= told.total_memory_bytes
    assert told.disk_free_bytes and len(told.free_ports) == 2
    assert told.model_files == {"config.json": 2}
    assert abs(told.clock_offset_s) < 1


def test_a_clock_that_is_off_is_told_by_how_much() -> None:
    """A time between question and answer is right; others are off by the distance."""
    host = Host("mac2", "mac2", "10.0.0.2", 1)
    told = json.loads(json.dumps(facts.collect({"worker_dir": "~/x"})))
    assert make_facts(host, {**told, "unix_time": 105.0}, 100.0, 110.0).clock_offset_s == 0
    assert make_facts(host, {**told, "unix_time": 90.0}, 100.0, 110.0).clock_offset_s == -10
    assert make_facts(host, {**told, "unix_time": 170.0}, 100.0, 110.0).clock_offset_s == 60


def test_the_programs_are_of_the_standard_library_and_fit_old_pythons() -> None:
    """They run in a host's own Python, from 3.8 on, with nothing of ours beside them."""
    for name in ("environment", "facts", "link"):
        program = make_program(name, {"a": 'quotes " and \\ and \n'}).decode()
        tree = ast.parse(program, feature_version=(3, 8))
        imported = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        imported |= {
            alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
        }
        assert {module.partition(".")[0] for module in imported} <= sys.stdlib_module_names


def test_the_newest_python_of_a_host_is_found(tmp_path: Path) -> None:
    """One that is named comes first; one that is too old only when there is no other."""
    settings = load_for_looking({"WORKER_PYTHON": sys.executable, "WORKER_DIR": str(tmp_path)}, tmp_path)
    command = make_python_command(Host("mac2", "mac2", "10.0.0.2", 1), settings)
    program = b"import sys; print(sys.executable)"
    ran = subprocess.run(["/bin/sh", "-c", command], input=program, capture_output=True, check=True)
    assert ran.stdout.decode().strip() == sys.executable
    assert "xcode-select -p" in command, "the stub of macOS would open a dialog"


def test_a_newer_python_is_preferred_whatever_the_order(tmp_path: Path) -> None:
    """One that is too old is taken only where there is no other, and where an old one will do."""
    old = tmp_path / "old"
    old.write_text("#!/bin/sh\n[ \"$1 $2\" = '-c import sys; sys.exit(sys.version_info < (3, 8))' ]\n")
    old.chmod(0o755)
    for names, versions, found in (
        ([old, sys.executable], ("3, 11", "3, 8"), sys.executable),
        ([old], ("3, 11", "3, 8"), old),
        ([old], ("3, 11",), ""),
    ):
        script = find_python_script([str(name) for name in names], versions) + "echo $python"
        ran = subprocess.run(["/bin/sh", "-c", script], capture_output=True, text=True, check=False)
        assert (ran.stdout.strip(), ran.returncode) == (str(found), 0 if found else NO_PYTHON)


def make_mac_commands(monkeypatch: pytest.MonkeyPatch, told: dict[str, str]) -> list[list[str]]:
    """Let this machine be a Mac whose commands print what is told by every second word; the calls."""
    calls = []

    def run(command: list[str]) -> str:
        calls.append(command)
        return told.get(" ".join(command[::2]), told.get(command[0], ""))

    monkeypatch.setattr(facts, "run", run)
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    return calls


MAC_16 = {"vm_stat": VM_STAT, "sysctl hw.memsize": "17179869184\n"}
MLX = "/nowhere/venv/bin/python -c"
QUESTION = {"worker_dir": "/nowhere", "environment": "/nowhere/venv"}


@pytest.mark.parametrize(
    ("told", "limit"),
    [
        ({MLX: "11453246122\n"}, 11_453_246_122),
        ({"sysctl iogpu.wired_limit_mb": "14000\n"}, 14_000 << 20),
        ({"sysctl iogpu.wired_limit_mb": "0\n"}, None),
        ({}, None),
    ],
)
def test_what_the_gpu_of_a_mac_may_use_is_asked_of_mlx_then_of_sysctl(
    monkeypatch: pytest.MonkeyPatch, told: dict[str, str], limit: int | None
) -> None:
    """In a process of the environment's Python; null where nobody tells, and the plan goes by the size."""
    make_mac_commands(monkeypatch, MAC_16 | told)
    found = facts.collect(QUESTION)
    assert found["gpu_wired_limit_bytes"] == limit
    assert found["total_memory_bytes"] == 16 << 30
    assert 0.3 < found["free_memory_bytes"] / found["total_memory_bytes"] < 0.4


def test_a_broken_environment_of_a_mac_keeps_no_fact_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an environment nothing is started, with a broken one sysctl is asked."""
    calls = make_mac_commands(monkeypatch, MAC_16)
    assert facts.collect({**QUESTION, "environment": None})["gpu_wired_limit_bytes"] is None
    assert not any("python" in command[0] for command in calls)
