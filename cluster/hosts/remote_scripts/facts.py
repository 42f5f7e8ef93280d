"""Reports the facts of this machine: memory, disk, network, Python, packages, free ports. probe.py sends it
to hosts as one file.

An unknown fact is null; nothing is changed. The parsers of the system's commands are pure. Those of macOS
follow Apple's documentation and recorded outputs; only a Mac can prove them: vm_stat, sysctl hw.memsize,
iogpu.wired_limit_mb, networksetup -listallhardwareports, ifconfig, ioreg, pmset.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import random
import re
import shutil
import socket
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("mlx", "mlx-lm", "mlx-metal", "mlx-cpu", "mlx-cuda", "mlx-cuda-12", "mlx-cuda-13")
COMMAND_LIMIT_S = 5
# Below the ephemeral ranges of Linux (from 32768) and macOS (from 49152), as in cluster/ports.py.
FIRST_PORT, LAST_PORT = 20000, 31999
NO_LIMIT_BYTES = 1 << 60  # version 1 of cgroups writes about 2^63 for none
# Metal's own figure, which follows iogpu.wired_limit_mb (mlx 0.32.4).
ASK_MLX = "import mlx.core as mx; print(mx.device_info()['max_recommended_working_set_size'])"
GPU = ["ioreg", "-rd1", "-c", "AGXAccelerator"]
FIREWALL = "/usr/libexec/ApplicationFirewall/socketfilterfw"


def main(question: dict[str, Any]) -> None:
    """Print the facts as one line of JSON.

    Args:
        question: {"worker_dir", "environment" (the venv's folder), "address" (in the ring), "num_ports",
            "model_folder"}, all but the first may be null; without "worker_dir" only free ports are wanted.
    """
    if "worker_dir" in question:
        answer = collect(question)
    else:
        ports, error = find_free_ports(question["address"], question["num_ports"])
        answer = {"free_ports": ports, "port_error": error}
    print(json.dumps(answer), flush=True)


def collect(question: dict[str, Any]) -> dict[str, Any]:
    """All facts of this machine."""
    is_mac = platform.system() == "Darwin"
    total, free = read_mac_memory() if is_mac else read_linux_memory()
    worker_dir = Path(question["worker_dir"]).expanduser()
    ports, port_error = find_free_ports(question.get("address"), question.get("num_ports") or 0)
    return {
        "hostname": socket.gethostname(),
        "system": platform.system(),
        "release": platform.mac_ver()[0] or platform.release(),
        "machine": platform.machine(),
        "num_cores": count_cores(),
        "python": sys.executable,
        "python_version": platform.python_version(),
        "can_make_environments": has_modules("venv", "ensurepip"),
        "total_memory_bytes": total,
        "free_memory_bytes": free,
        "gpu_wired_limit_bytes": read_mac_gpu_limit(question.get("environment")) if is_mac else None,
        "chip": read_chip(is_mac),
        "num_gpu_cores": parse_gpu_cores(run(GPU)) if is_mac else None,
        **(read_mac_power() if is_mac else {}),
        "worker_dir": str(worker_dir),
        "disk_free_bytes": read_free_disk(worker_dir),
        "interfaces": list_mac_interfaces() if is_mac else list_linux_interfaces(),
        "versions": read_versions(question.get("environment")),
        "rsync": parse_rsync(run(["rsync", "--version"])),
        "firewall": parse_mac_firewall(run([FIREWALL, "--getglobalstate"])) if is_mac else None,
        "unix_time": time.time(),
        "free_ports": ports,
        "port_error": port_error,
        "model_files": list_files(question.get("model_folder")),
    }


def run(command: list[str]) -> str:
    """The output of a command; empty if it is missing or fails."""
    environment = {**os.environ, "LC_ALL": "C", "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"}
    try:
        ended = subprocess.run(
            command,
            check=False,
            capture_output=True,
            timeout=COMMAND_LIMIT_S,
            env=environment,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return ended.stdout.decode("utf-8", errors="replace") if ended.returncode == 0 else ""


def read_text(path: Path | str) -> str:
    """The text of a small file; empty if it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def has_modules(*names: str) -> bool:
    """True if all these modules can be imported (Debian packs ensurepip apart)."""
    for name in names:
        try:
            __import__(name)
        except ImportError:
            return False
    return True


def count_cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def read_chip(is_mac: bool) -> str:
    """The processor's name; empty if unknown."""
    if is_mac:
        return run(["sysctl", "-n", "machdep.cpu.brand_string"]).strip()
    match = re.search(r"^model name\s*: (.+)$", read_text("/proc/cpuinfo"), re.MULTILINE)
    return match[1].strip() if match else ""


def read_free_disk(folder: Path) -> int | None:
    """Bytes free on the disk where the folder is or would be made."""
    for place in (folder, *folder.parents):
        with contextlib.suppress(OSError):
            return shutil.disk_usage(place).free
    return None


def read_versions(environment: str | None) -> dict[str, str]:
    """The versions of PACKAGES, if this Python belongs to the environment."""
    if not environment or not same_folder(sys.prefix, environment):
        return {}
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def same_folder(one: str, other: str) -> bool:
    """True if both name the same existing folder."""
    try:
        return os.path.samefile(one, os.path.expanduser(other))
    except OSError:
        return False


def list_files(folder: str | None) -> dict[str, int] | None:
    """Sizes of a folder's files by name; null without that folder."""
    if not folder:
        return None
    try:
        with os.scandir(os.path.expanduser(folder)) as entries:
            return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
    except OSError:
        return None


def find_free_ports(address: str | None, num_ports: int) -> tuple[list[int], str | None]:
    """Free ports on an address, in random order; and why there are too few."""
    found: list[int] = []
    if not address or not num_ports:
        return found, None
    for port in random.sample(range(FIRST_PORT, LAST_PORT + 1), 64 + 8 * num_ports):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as trial:
            try:
                trial.bind((address, port))
            except OSError as error:
                if error.errno in _ADDRESS_ERRORS:
                    return [], "no such address"
                continue
        found.append(port)
        if len(found) == num_ports:
            return found, None
    return found, "all tried ports are taken"


# EADDRNOTAVAIL of Linux and macOS; EACCES would be the same for every port.
_ADDRESS_ERRORS = (99, 49, 13)


def parse_rsync(text: str) -> str | None:
    """`3.2.7` or `2.6.9 compatible` (openrsync) from `rsync --version`."""
    match = re.search(r"\bversion\s+(\d+\.\S+)", text)
    if match:
        return match[1] + (" (openrsync)" if "openrsync" in text else "")
    return None


# Linux


def read_linux_memory() -> tuple[int | None, int | None]:
    """Total and free bytes, within the limits of the control groups this process is in."""
    total, free = parse_meminfo(read_text("/proc/meminfo"))
    for limit, used in read_cgroup_limits():
        if total is not None:
            total = min(total, limit)
        if free is not None:
            free = max(0, min(free, limit - used))
    return total, free


def parse_meminfo(text: str) -> tuple[int | None, int | None]:
    """MemTotal and MemAvailable of /proc/meminfo, in bytes."""
    found = {match[1]: int(match[2]) * 1024 for match in re.finditer(r"(\w+):\s+(\d+) kB", text)}
    return found.get("MemTotal"), found.get("MemAvailable", found.get("MemFree"))


def read_cgroup_limits(root: Path = Path("/sys/fs/cgroup"), own: str | None = None) -> list[tuple[int, int]]:
    """(limit, used) of every control group above this process that has a limit; both versions."""
    found = []
    for line in (read_text("/proc/self/cgroup") if own is None else own).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "memory" not in controllers.split(","):
            continue
        base = root / "memory" if controllers else root
        names = (
            ("memory.limit_in_bytes", "memory.usage_in_bytes")
            if controllers
            else ("memory.max", "memory.current")
        )
        group = base / path.lstrip("/")
        for folder in (group, *group.parents):
            limit, used = read_text(folder / names[0]), read_text(folder / names[1])
            if limit.isdigit() and int(limit) < NO_LIMIT_BYTES and used.isdigit():
                found.append((int(limit), max(0, int(used) - read_file_cache(folder))))
            if folder == base:
                break
    return found


def read_file_cache(group: Path) -> int:
    """Bytes of a control group that the kernel can reclaim."""
    match = re.search(r"^(?:total_)?inactive_file (\d+)$", read_text(group / "memory.stat"), re.MULTILINE)
    return int(match[1]) if match else 0


def list_linux_interfaces() -> list[dict[str, Any]]:
    """The interfaces but loopback, with their IPv4 addresses."""
    addresses = parse_ip_addresses(run(["ip", "-json", "-4", "address", "show"]))
    found = []
    for folder in sorted(Path("/sys/class/net").glob("*")):
        if folder.name == "lo":
            continue
        speed = read_text(folder / "speed")
        found.append(
            {
                "name": folder.name,
                "kind": find_linux_kind(folder),
                "addresses": addresses.get(folder.name, []),
                "speed_mbps": int(speed) if speed.isdigit() and int(speed) else None,
                "is_up": read_text(folder / "operstate") in ("up", "unknown"),
            }
        )
    return found


def find_linux_kind(folder: Path) -> str:
    """thunderbolt, wifi, bridge, ethernet or other, by what /sys/class/net/NAME holds."""
    driver = os.path.basename(os.path.realpath(folder / "device" / "driver"))
    if driver in ("thunderbolt-net", "thunderbolt_net"):
        return "thunderbolt"
    if (folder / "wireless").exists() or (folder / "phy80211").exists():
        return "wifi"
    if (folder / "bridge").exists():
        return "bridge"
    return "ethernet" if read_text(folder / "type") == "1" else "other"


def parse_ip_addresses(text: str) -> dict[str, list[str]]:
    """Addresses by interface from `ip -json -4 address show`."""
    try:
        listed = json.loads(text) if text else []
    except ValueError:
        return {}
    return {
        entry["ifname"]: [address["local"] for address in entry.get("addr_info", []) if "local" in address]
        for entry in listed
        if "ifname" in entry
    }


# macOS


def read_mac_memory() -> tuple[int | None, int | None]:
    """Total bytes, and bytes that are free or reclaimable."""
    total = run(["sysctl", "-n", "hw.memsize"]).strip()
    return int(total) if total.isdigit() else None, parse_vm_stat(run(["vm_stat"]))


def parse_vm_stat(text: str) -> int | None:
    """Free, speculative and inactive pages of vm_stat, in bytes."""
    size = re.search(r"page size of (\d+) bytes", text)
    pages = {
        match[1]: int(match[2]) for match in re.finditer(r'^"?([^":]+)"?:\s+(\d+)\.', text, re.MULTILINE)
    }
    if not size or "Pages free" not in pages:
        return None
    counted = ("Pages free", "Pages speculative", "Pages inactive")
    return int(size[1]) * sum(pages.get(name, 0) for name in counted)


def read_mac_gpu_limit(environment: str | None) -> int | None:
    """Bytes the GPU may use, by MLX, else by `sysctl iogpu.wired_limit_mb`, else null."""
    if environment:
        python = os.path.join(os.path.expanduser(environment), "bin", "python")
        limit = run([python, "-I", "-c", ASK_MLX]).strip()
        if limit.isdigit() and int(limit):
            return int(limit)
    limit = run(["sysctl", "-n", "iogpu.wired_limit_mb"]).strip()
    return int(limit) << 20 if limit.isdigit() and int(limit) else None


def parse_gpu_cores(text: str) -> int | None:
    """`"gpu-core-count" = 40` of ioreg."""
    match = re.search(r'"gpu-core-count" = (\d+)', text)
    return int(match[1]) if match else None


def read_mac_power() -> dict[str, Any]:
    """When this Mac sleeps: minutes without use (0: never), on battery, with a battery of its own."""
    settings, source = run(["pmset", "-g"]), run(["pmset", "-g", "batt"])
    minutes = re.search(r"^ *sleep\s+(\d+)", settings, re.MULTILINE)
    is_disabled = re.search(r"^ *SleepDisabled\s+1", settings, re.MULTILINE)
    return {
        "sleep_minutes": 0 if is_disabled else int(minutes[1]) if minutes else None,
        "is_on_battery": "'Battery Power'" in source,
        "is_laptop": "InternalBattery" in source,
    }


def list_mac_interfaces() -> list[dict[str, Any]]:
    """The hardware ports with their addresses."""
    ports = parse_hardware_ports(run(["networksetup", "-listallhardwareports"]))
    return parse_ifconfig(run(["ifconfig"]), ports)


def parse_hardware_ports(text: str) -> dict[str, str]:
    """`Thunderbolt Bridge`, `Wi-Fi`, `Ethernet` … by device, from networksetup."""
    return {
        match[2]: match[1]
        for match in re.finditer(r"^Hardware Port: (.+)\nDevice: (\S+)$", text, re.MULTILINE)
    }


def parse_ifconfig(text: str, ports: dict[str, str]) -> list[dict[str, Any]]:
    """The interfaces of ifconfig that are hardware ports."""
    found = []
    for block in re.split(r"^(?=\S)", text, flags=re.MULTILINE):
        name = block.partition(":")[0]
        if name not in ports:
            continue
        status = re.search(r"^\s+status: (\S+)", block, re.MULTILINE)
        found.append(
            {
                "name": name,
                "kind": find_mac_kind(ports[name]),
                "addresses": re.findall(r"^\s+inet (\S+)", block, re.MULTILINE),
                "speed_mbps": parse_media(block),
                "is_up": bool(status and status[1] == "active"),
            }
        )
    return found


def find_mac_kind(port: str) -> str:
    """The kind of interface by the name of its hardware port."""
    lower = port.lower()
    if lower.startswith("thunderbolt") and "ethernet" not in lower:
        return "thunderbolt"
    if lower in ("wi-fi", "airport"):
        return "wifi"
    if "ethernet" in lower or "lan" in lower.split():
        return "ethernet"
    return "other"


def parse_media(block: str) -> int | None:
    """Mbit/s of ifconfig's media line: 1000baseT, 2500Base-T, 10Gbase-T."""
    match = re.search(r"media:.*?\b(\d+)(G?)base", block, re.IGNORECASE)
    return int(match[1]) * (1000 if match[2] else 1) if match else None


def parse_mac_firewall(text: str) -> bool | None:
    """True if the application firewall is on: `Firewall is enabled. (State = 1)`."""
    match = re.search(r"State = (\d)", text)
    return match[1] != "0" if match else None
