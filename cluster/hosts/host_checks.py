"""The doctor's judgement of a host's facts and of the links between hosts: facts in, findings out.

Pure. Has the limits. Knows nothing of ssh.
"""

from __future__ import annotations

from collections.abc import Mapping

from cluster.findings import Finding, Level
from cluster.hosts.links import Link
from cluster.hosts.probe import HostFacts, Interface
from cluster.hosts.worker_setup import Environment
from cluster.terminal import format_bytes

COMPARED = ("mlx", "mlx-lm")
# For the packages; code and logs take little.
NEEDED_DISK_BYTES = {"good": 0, "missing": 3_000_000_000, "other": 1_000_000_000, "broken": 1_000_000_000}
SPARE_DISK_BYTES = 200_000_000
MAX_CLOCK_OFFSET_S = 2.0
MIN_LINK_MBPS = 800.0  # gigabit Ethernet gives about 940
MAX_LATENCY_US = 2000.0
DOCTOR_FIX = "./launch.sh doctor --fix"


def check_host(facts: HostFacts, environment: Environment) -> list[Finding]:
    """Judge a worker's facts and environment."""
    return [
        check_python(facts, environment),
        *([] if facts.rsync else [missing_rsync(facts)]),
        check_environment(facts, environment),
        check_disk(facts, NEEDED_DISK_BYTES[environment.state]),
        check_ring_address(facts),
        *check_cable(facts),
        *check_clock(facts),
        *check_firewall(facts),
        *check_sleep(facts),
    ]


def check_first_host(facts: HostFacts, *, is_single: bool) -> list[Finding]:
    """Judge this machine's facts."""
    findings = [check_python(facts), check_disk(facts, SPARE_DISK_BYTES)]
    if not is_single:
        findings += [] if facts.rsync else [missing_rsync(facts)]
        findings += check_cable(facts)
    return [*findings, check_ring_address(facts), *check_sleep(facts)]


def check_python(facts: HostFacts, environment: Environment | None = None) -> Finding:
    """Python is new enough, and has the venv module if an environment must be made."""
    text = f"Python {facts.python_version} ({facts.python}), {facts.system} {facts.release} {facts.machine}"
    if facts.mac_trouble:
        return _finding(facts, "python", "failed", *facts.mac_trouble)
    if not facts.is_new_enough:
        text = f"the newest Python found is {facts.python_version} ({facts.python}); 3.11 or newer is needed"
        return _finding(facts, "python", "failed", text, install_python(facts.host.name, facts.system))
    is_to_be_made = environment is not None and environment.state in ("missing", "broken")
    if is_to_be_made and not facts.can_make_environments:
        version = ".".join(facts.python_version.split(".")[:2])
        text = f"{facts.python} has no venv module, so no environment can be made"
        return _finding(
            facts, "python", "failed", text, on_host(facts, f"sudo apt-get install python{version}-venv")
        )
    return _finding(facts, "python", "ok", text)


def install_python(name: str, system: str = "") -> str:
    """The command that installs Python on a host."""
    commands = {"Darwin": "brew install python", "Linux": "sudo apt-get install python3 python3-venv"}
    if system in commands:
        return f"on {name}: {commands[system]}"
    return f"on {name}: {commands['Darwin']} (macOS) or {commands['Linux']} (Debian, Ubuntu)"


def on_host(facts: HostFacts, command: str) -> str:
    """A command to type on a host."""
    return command if facts.host.is_local else f"on {facts.host.name}: {command}"


def missing_rsync(facts: HostFacts) -> Finding:
    """rsync is missing."""
    text = "rsync is not installed, so code and model files cannot be copied"
    return _finding(facts, "rsync", "failed", text, on_host(facts, "sudo apt-get install rsync"))


def check_environment(facts: HostFacts, environment: Environment) -> Finding:
    """The environment exists, is complete, and has this machine's versions."""
    folder, trouble = f"{facts.worker_dir}/venv", environment.trouble
    if environment.state == "good":
        return _finding(facts, "packages", "ok", describe_versions(facts.versions))
    text = {
        "missing": f"no environment in {folder} yet: `start` makes it, once, or do it now",
        "other": f"the environment in {folder} is of another release: `start` updates it ({trouble})",
        "broken": f"the environment in {folder} is incomplete: `start` makes a new one ({trouble})",
    }[environment.state]
    return _finding(facts, "packages", "note", text, DOCTOR_FIX)


def describe_versions(versions: Mapping[str, str]) -> str:
    """`mlx 0.32.4, mlx-lm 0.32.2`."""
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def check_disk(facts: HostFacts, needed_bytes: int) -> Finding:
    """Enough disk for what must still be copied; on this machine, for a queue."""
    free, place = facts.disk_free_bytes, facts.worker_dir
    if free is None:
        return _finding(facts, "disk", "note", f"the free space at {place} could not be read")
    if free >= needed_bytes:
        return _finding(facts, "disk", "ok", f"{format_bytes(free)} free at {place}")
    text = f"{format_bytes(free)} free at {place}, {format_bytes(needed_bytes)} are needed"
    key = "STATE_DIR" if facts.host.is_local else "WORKER_DIR"
    fix = f"make room there, or choose a folder on another disk: {key} in .env"
    # On this machine a full disk keeps requests out, and the service still runs.
    return _finding(facts, "disk", "note" if facts.host.is_local else "failed", text, fix)


def describe_memory(facts: HostFacts) -> Finding:
    """The host's memory; the plan judges whether it is enough."""
    free, total = facts.free_memory_bytes, facts.total_memory_bytes
    if free is None or total is None:
        return _finding(facts, "memory", "note", "the free memory could not be read")
    chip = f" ({facts.chip})" if facts.chip else ""
    gpu = facts.gpu_wired_limit_bytes
    limit = f", of which the GPU may use {format_bytes(gpu)}" if gpu else ""
    return _finding(facts, "memory", "ok", f"{format_bytes(free)} free of {format_bytes(total)}{limit}{chip}")


def check_ring_address(facts: HostFacts) -> Finding:
    """The ring address belongs to the host and has free ports."""
    address, name = facts.host.address, facts.host.name
    if facts.port_error == "no such address":
        has = ", ".join(
            f"{own} ({entry.name}, {entry.kind})" for entry in facts.interfaces for own in entry.addresses
        )
        key = f"RING_ADDRESS={address}" if facts.host.is_local else f"{facts.host.ssh}={address}"
        text = f"{address} is not an address of {name}; it has {has or 'none'}"
        fix = f"give it that address (docs/cluster.md), or write the right one in .env in place of {key}"
        return _finding(facts, "ring", "failed", text, fix)
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
    """The ring does not use Wi-Fi; if it does, name a cable's address."""
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
    """The clocks agree, since logs are merged by time."""
    offset_s = facts.clock_offset_s
    if abs(offset_s) <= MAX_CLOCK_OFFSET_S:
        return []
    way = "ahead of" if offset_s > 0 else "behind"
    text = f"its clock is {abs(offset_s):.0f} s {way} ours: merged logs will be out of order"
    command = "sudo sntp -sS time.apple.com" if facts.system == "Darwin" else "sudo timedatectl set-ntp true"
    return [_finding(facts, "clock", "note", text, on_host(facts, command))]


def check_firewall(facts: HostFacts) -> list[Finding]:
    """The macOS firewall is off; it would ask on that Mac's screen."""
    if not facts.firewall:
        return []
    text = "the macOS firewall is on: it may ask on that Mac's screen whether Python may accept connections"
    fix = "allow it there: System Settings, Network, Firewall, Options (docs/cluster.md)"
    return [_finding(facts, "firewall", "note", text, fix)]


def check_sleep(facts: HostFacts) -> list[Finding]:
    """A Mac stays awake; its ranks can only keep it from sleeping for want of use."""
    lid = ", but not with a closed lid" if facts.is_laptop else ""
    if facts.is_on_battery:
        text = f"it runs on battery: a rank keeps it awake while that lasts{lid}"
        return [_finding(facts, "sleep", "note", text, f"connect {facts.host.name} to power")]
    if not facts.sleep_minutes:
        return []
    text = f"it sleeps after {facts.sleep_minutes} min without use; a running rank prevents that{lid}"
    return [_finding(facts, "sleep", "note", text, on_host(facts, "sudo pmset -a sleep 0"))]


def check_link(link: Link, systems: Mapping[str, str]) -> Finding:
    """A host reaches its neighbour fast enough; `systems` by host name."""
    pair = f"{link.source.name} to {link.target.name}"
    if link.trouble:
        text = f"{link.source.name} cannot reach {link.target.name} at {link.target.address}: {link.trouble}"
        return Finding(link.source.name, "link", "failed", text, advise_on_link(link, systems))
    assert link.latency_us is not None and link.send_mbps is not None and link.receive_mbps is not None
    text = (
        f"{pair}: {link.send_mbps:.0f} Mbit/s there, {link.receive_mbps:.0f} back, "
        f"{link.latency_us / 1000:.2f} ms round trip"
    )
    if link.source_address not in ("", link.source.address):
        text += f"; it leaves by {link.source_address}, not by the ring address {link.source.address}"
        fix = f"give both ring addresses in one subnet, or a route, on {link.source.name}: docs/cluster.md"
        return Finding(link.source.name, "link", "note", text, fix)
    if min(link.send_mbps, link.receive_mbps) < MIN_LINK_MBPS or link.latency_us > MAX_LATENCY_US:
        fix = "use a cable for the ring, and its addresses in .env: docs/cluster.md"
        return Finding(link.source.name, "link", "note", f"{text}: slower than a gigabit cable", fix)
    return Finding(link.source.name, "link", "ok", text)


def advise_on_link(link: Link, systems: Mapping[str, str]) -> str:
    """What to check when a link does not work."""
    first = f"check the cable and both addresses, on {link.source.name}: ping {link.target.address}"
    if "Darwin" in (systems.get(link.source.name), systems.get(link.target.name)):
        return f"{first}; on macOS also Privacy & Security, Local Network, and the firewall: docs/cluster.md"
    return f"{first}; and that no firewall is in the way of TCP ports 20000 to 31999"


def _finding(facts: HostFacts, check: str, level: Level, text: str, fix: str = "") -> Finding:
    return Finding(facts.host.name, check, level, text, fix)
