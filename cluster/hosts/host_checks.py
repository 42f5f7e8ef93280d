"""What the doctor makes of a host's facts and of the links between hosts: pure, facts in, findings out.

Limits are named here. Knows nothing of ssh.
"""

from __future__ import annotations

from collections.abc import Mapping

from cluster.findings import Finding, Level
from cluster.hosts.hosts import Host
from cluster.hosts.links import Link
from cluster.hosts.probe import HostFacts, Interface
from cluster.hosts.workers import Environment
from cluster.terminal import format_bytes

COMPARED = ("mlx", "mlx-lm")
# pip downloads 360 MB and unpacks three times that (Linux); code and logs take next to nothing.
NEEDED_DISK_BYTES = {"good": 0, "missing": 3_000_000_000, "other": 1_000_000_000, "broken": 1_000_000_000}
SPARE_DISK_BYTES = 200_000_000
MAX_CLOCK_OFFSET_S = 2.0
MIN_LINK_MBPS = 800.0  # gigabit Ethernet gives about 940
MAX_LATENCY_US = 2000.0
DOCTOR_FIX = "./launch.sh doctor --fix"


def check_host(facts: HostFacts, environment: Environment) -> list[Finding]:
    """Everything that a worker's facts and the environment there say."""
    return [
        check_python(facts, environment),
        *([] if facts.rsync else [missing_rsync(facts)]),
        check_environment(facts, environment),
        check_disk(facts, NEEDED_DISK_BYTES[environment.state]),
        check_ring_address(facts),
        *check_cable(facts),
        *check_clock(facts),
        *check_firewall(facts),
    ]


def check_first_host(facts: HostFacts, *, is_single: bool) -> list[Finding]:
    """What this machine's facts say."""
    findings = [check_python(facts), check_disk(facts, SPARE_DISK_BYTES)]
    if not is_single:
        findings += [] if facts.rsync else [missing_rsync(facts)]
        findings += check_cable(facts)
    return [*findings, check_ring_address(facts)]


def check_python(facts: HostFacts, environment: Environment | None = None) -> Finding:
    """A Python that is new enough, with its venv module where an environment is still to be made."""
    text = f"Python {facts.python_version} ({facts.python}), {facts.system} {facts.release} {facts.machine}"
    if facts.mac_trouble:
        return _finding(facts, "python", "failed", *facts.mac_trouble)
    if not facts.is_new_enough:
        text = f"the newest Python found is {facts.python_version} ({facts.python}); 3.11 or newer is needed"
        return _finding(facts, "python", "failed", text, install_python(facts.host.name, facts.system))
    is_to_be_made = environment is not None and environment.state in ("missing", "broken")
    if is_to_be_made and not facts.can_make_environments:
        version = ".".join(facts.python_version.split(".")[:2])
        text = f"{facts.python} has no venv module, so that no environment can be made"
        return _finding(
            facts, "python", "failed", text, on_host(facts, f"sudo apt-get install python{version}-venv")
        )
    return _finding(facts, "python", "ok", text)


def install_python(name: str, system: str = "") -> str:
    """How to get a Python on a host."""
    commands = {"Darwin": "brew install python", "Linux": "sudo apt-get install python3 python3-venv"}
    if system in commands:
        return f"on {name}: {commands[system]}"
    return f"on {name}: {commands['Darwin']} (macOS) or {commands['Linux']} (Debian, Ubuntu)"


def on_host(facts: HostFacts, command: str) -> str:
    """A command to type on a host."""
    return command if facts.host.is_local else f"on {facts.host.name}: {command}"


def missing_rsync(facts: HostFacts) -> Finding:
    """No rsync."""
    text = "rsync is not installed, so that code and model files cannot be copied"
    return _finding(facts, "rsync", "failed", text, on_host(facts, "sudo apt-get install rsync"))


def check_environment(facts: HostFacts, environment: Environment) -> Finding:
    """The environment is there, whole, and in the versions of this machine."""
    folder, trouble = f"{facts.worker_dir}/venv", environment.trouble
    if environment.state == "good":
        return _finding(facts, "packages", "ok", describe_versions(facts.versions))
    text = {
        "missing": f"no environment in {folder} yet: `start` makes it, once, or do it now",
        "other": f"the environment in {folder} is of another release: `start` renews it ({trouble})",
        "broken": f"the environment in {folder} is not whole: `start` makes it anew ({trouble})",
    }[environment.state]
    return _finding(facts, "packages", "note", text, DOCTOR_FIX)


def describe_versions(versions: Mapping[str, str]) -> str:
    """`mlx 0.32.4, mlx-lm 0.32.2`."""
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def check_disk(facts: HostFacts, needed_bytes: int) -> Finding:
    """Room for what is still to be put there; on this machine, room for a queue."""
    free, place = facts.disk_free_bytes, facts.worker_dir
    if free is None:
        return _finding(facts, "disk", "note", f"the free space at {place} could not be read")
    if free >= needed_bytes:
        return _finding(facts, "disk", "ok", f"{format_bytes(free)} free at {place}")
    text = f"{format_bytes(free)} free at {place}, {format_bytes(needed_bytes)} are needed"
    key = "STATE_DIR" if facts.host.is_local else "WORKER_DIR"
    mend = f"make room there, or choose a folder on another disk: {key} in .env"
    # Here, nothing is accepted while there is no room for it; all else goes on.
    return _finding(facts, "disk", "note" if facts.host.is_local else "failed", text, mend)


def describe_memory(facts: HostFacts) -> Finding:
    """What the host has; whether it is enough is the plan's to say."""
    free, total = facts.free_memory_bytes, facts.total_memory_bytes
    if free is None or total is None:
        return _finding(facts, "memory", "note", "the free memory could not be read")
    chip = f" ({facts.chip})" if facts.chip else ""
    gpu = facts.gpu_wired_limit_bytes
    limit = f", of which the GPU may use {format_bytes(gpu)}" if gpu else ""
    return _finding(facts, "memory", "ok", f"{format_bytes(free)} free of {format_bytes(total)}{limit}{chip}")


def check_ring_address(facts: HostFacts) -> Finding:
    """The ring address is the host's own, and has free ports."""
    address, name = facts.host.address, facts.host.name
    if facts.port_error == "no such address":
        has = ", ".join(
            f"{own} ({entry.name}, {entry.kind})" for entry in facts.interfaces for own in entry.addresses
        )
        key = f"RING_ADDRESS={address}" if facts.host.is_local else f"{facts.host.ssh}={address}"
        text = f"{address} is not an address of {name}; it has {has or 'none'}"
        mend = f"give it that address (docs/cluster.md), or write the right one in .env in place of {key}"
        return _finding(facts, "ring", "failed", text, mend)
    if facts.port_error:
        text = f"no ring port is free on {address}: {facts.port_error}"
        return _finding(facts, "ring", "failed", text, on_host(facts, "netstat -an | grep LISTEN"))
    interface = facts.interface_of(address)
    where = f" ({interface.name}, {describe_interface(interface)})" if interface else ""
    return _finding(facts, "ring", "ok", f"{address}{where}: ports are free")


def describe_interface(interface: Interface) -> str:
    """`thunderbolt`, `ethernet 10000 Mbit/s`."""
    speed = f" {interface.speed_mbps} Mbit/s" if interface.speed_mbps else ""
    return f"{interface.kind}{speed}"


def check_cable(facts: HostFacts) -> list[Finding]:
    """Wi-Fi in the ring is pointed out, with the cable's address where there is one."""
    address = facts.host.address
    interface = facts.interface_of(address)
    if interface is None or interface.kind != "wifi":
        return []
    cables = [
        (entry, own)
        for kind in ("thunderbolt", "ethernet")
        for entry in facts.interfaces
        if entry.kind == kind and entry.is_up
        for own in entry.addresses
    ]
    text = f"the ring address {address} is on Wi-Fi ({interface.name}); a cable is many times faster"
    if not cables:
        return [
            _finding(facts, "cable", "note", text, "connect a cable and give it an address: docs/cluster.md")
        ]
    entry, own = cables[0]
    key = f"RING_ADDRESS={own}" if facts.host.is_local else f"{facts.host.ssh}={own} in WORKER_HOSTS"
    return [
        _finding(facts, "cable", "note", f"{text}, and {entry.name} ({entry.kind}) has {own}", f"write {key}")
    ]


def check_clock(facts: HostFacts) -> list[Finding]:
    """Logs are merged by time."""
    offset_s = facts.clock_offset_s
    if abs(offset_s) <= MAX_CLOCK_OFFSET_S:
        return []
    way = "ahead of" if offset_s > 0 else "behind"
    text = f"its clock is {abs(offset_s):.0f} s {way} ours: merged logs will be out of order"
    command = "sudo sntp -sS time.apple.com" if facts.system == "Darwin" else "sudo timedatectl set-ntp true"
    return [_finding(facts, "clock", "note", text, on_host(facts, command))]


def check_firewall(facts: HostFacts) -> list[Finding]:
    """macOS' application firewall asks on the screen, which nobody may be looking at."""
    if not facts.firewall:
        return []
    text = "the macOS firewall is on: it may ask on that Mac's screen whether Python may accept connections"
    mend = "allow it there: System Settings, Network, Firewall, Options (docs/cluster.md)"
    return [_finding(facts, "firewall", "note", text, mend)]


def check_link(link: Link, systems: Mapping[str, str]) -> Finding:
    """A neighbour that is reached, and how fast; `systems` by host name."""
    pair = f"{link.source.name} to {link.target.name}"
    if link.trouble:
        text = f"{link.source.name} cannot reach {link.target.name} at {link.target.address}: {link.trouble}"
        return Finding(link.source.name, "link", "failed", text, mend_link(link, systems))
    assert link.latency_us is not None and link.send_mbps is not None and link.receive_mbps is not None
    text = (
        f"{pair}: {link.send_mbps:.0f} Mbit/s there, {link.receive_mbps:.0f} back, "
        f"{link.latency_us / 1000:.2f} ms there and back"
    )
    if link.source_address not in ("", link.source.address):
        text += f"; it leaves by {link.source_address}, not by the ring address {link.source.address}"
        mend = f"give both ring addresses in one subnet, or a route, on {link.source.name}: docs/cluster.md"
        return Finding(link.source.name, "link", "note", text, mend)
    if min(link.send_mbps, link.receive_mbps) < MIN_LINK_MBPS or link.latency_us > MAX_LATENCY_US:
        mend = "use a cable for the ring, and its addresses in .env: docs/cluster.md"
        return Finding(link.source.name, "link", "note", f"{text}: slower than a gigabit cable", mend)
    return Finding(link.source.name, "link", "ok", text)


def mend_link(link: Link, systems: Mapping[str, str]) -> str:
    """What helps a link that does not work."""
    first = f"check the cable and both addresses, on {link.source.name}: ping {link.target.address}"
    if "Darwin" in (systems.get(link.source.name), systems.get(link.target.name)):
        return f"{first}; on macOS also Privacy & Security, Local Network, and the firewall: docs/cluster.md"
    return f"{first}; and that no firewall is in the way of TCP ports 20000 to 31999"


def _finding(facts: HostFacts, check: str, level: Level, text: str, mend: str = "") -> Finding:
    return Finding(facts.host.name, check, level, text, mend)


def not_asked(host: Host, check: str, text: str, mend: str) -> Finding:
    """A host of which nothing is known."""
    return Finding(host.name, check, "failed", text, mend)
