"""Collects the facts of a host: runs remote_scripts/facts.py in the host's own Python, which answers in JSON.

Asks this machine in the same way. Knows nothing of how the facts are used.
"""

from __future__ import annotations

import json
import secrets
import shlex
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cluster.errors import ClusterError
from cluster.hosts.hosts import Host
from cluster.hosts.remote_program import make_program
from cluster.hosts.ssh import Completed, run_on
from cluster.hosts.worker_setup import (
    NEWEST_PYTHONS,
    NO_PYTHON,
    Worker,
    find_python_script,
    quote_remote,
)
from config import Settings

PROBE_LIMIT_S = 30.0
NEEDED_PYTHON = (3, 11)
OLD_VERSIONS = ("3, 11", "3, 8")  # facts can be collected by an older one, too
OLDEST_MACOS = 14


class NoPython(ClusterError):
    """A host has no Python that could collect its facts."""


@dataclass(frozen=True)
class Interface:
    """One network interface; `kind` is thunderbolt, ethernet, wifi, bridge or other."""

    name: str
    kind: str
    addresses: tuple[str, ...]
    speed_mbps: int | None
    is_up: bool


@dataclass(frozen=True)
class HostFacts:
    """The facts of a host; None where it cannot find one out."""

    host: Host
    hostname: str
    system: str  # Linux, Darwin
    release: str
    machine: str
    num_cores: int
    python: str
    python_version: str
    can_make_environments: bool
    total_memory_bytes: int | None
    free_memory_bytes: int | None  # within the limits of control groups
    gpu_wired_limit_bytes: int | None  # macOS: what the GPU may use, by MLX or sysctl
    chip: str  # the processor's name; empty if unknown
    worker_dir: str  # absolute
    disk_free_bytes: int | None
    interfaces: tuple[Interface, ...]
    versions: Mapping[str, str]  # mlx, mlx-lm, … in the environment; empty without one
    rsync: str | None
    firewall: bool | None  # macOS: the application firewall is on
    clock_offset_s: float  # of the host's clock against ours
    free_ports: tuple[int, ...]  # on its ring address
    port_error: str | None
    model_files: Mapping[str, int] | None  # sizes by name; None without that folder
    num_gpu_cores: int | None = None  # macOS
    sleep_minutes: int | None = None  # macOS: without use; 0: never
    is_on_battery: bool = False
    is_laptop: bool = False

    @property
    def is_new_enough(self) -> bool:
        """Its Python can run this program."""
        return tuple(int(part) for part in self.python_version.split(".")[:2]) >= NEEDED_PYTHON

    @property
    def mac_trouble(self) -> tuple[str, str] | None:
        """Why MLX cannot run on this Mac, and the fix; None if it can, and on other systems."""
        if self.system != "Darwin":
            return None
        if self.machine != "arm64" and "Apple" in self.chip:
            text = (
                f"{self.python} is a Python for Intel Macs, which runs under Rosetta; MLX needs one for arm64"
            )
            return text, "brew install python, or name another with WORKER_PYTHON in .env"
        if self.machine != "arm64":
            return (
                f"it is an Intel Mac ({self.chip}); MLX needs Apple silicon",
                "leave it out of WORKER_HOSTS",
            )
        major = self.release.partition(".")[0]
        if major.isdigit() and int(major) < OLDEST_MACOS:
            text = f"macOS {self.release} is too old, MLX needs {OLDEST_MACOS} or newer"
            return text, "update it there: System Settings, General, Software Update"
        return None

    def interface_of(self, address: str) -> Interface | None:
        """The interface that has an address."""
        return next((entry for entry in self.interfaces if address in entry.addresses), None)


async def probe(
    host: Host,
    settings: Settings,
    *,
    model_folder: str | None = None,
    num_ports: int | None = None,
) -> HostFacts:
    """Collect the facts of a host, or of this machine. Changes nothing there.

    Args:
        model_folder: a folder there whose files are listed.
        num_ports: free ports wanted on the ring address; None: one per rank.

    Raises:
        HostUnreachable: ssh failed.
        NoPython: it has no usable Python.
        ClusterError: its answer is no JSON.
    """
    question = {
        "worker_dir": str(settings.state_dir) if host.is_local else settings.worker_dir,
        "environment": sys.prefix if host.is_local else f"{settings.worker_dir}/venv",
        "address": host.address,
        "num_ports": host.num_ranks if num_ports is None else num_ports,
        "model_folder": model_folder,
    }
    began = time.time()
    command, program = make_python_command(host, settings), make_program("facts", question)
    done = await run_on(host, command, input=program, timeout_s=PROBE_LIMIT_S)
    return make_facts(host, read_answer(host, done), began, time.time())


def make_python_command(host: Host, settings: Settings) -> str:
    """The line of sh that runs a Python program from standard input on a host."""
    if host.is_local:
        return f"exec {shlex.quote(sys.executable)} -I -"
    worker = Worker(host, settings.worker_dir)
    names = [worker.shell_path("venv/bin/python"), *NEWEST_PYTHONS]
    if settings.worker_python:
        names.insert(1, quote_remote(settings.worker_python))
    return f'{find_python_script(names, OLD_VERSIONS)}exec "$python" -I -'


def read_answer(host: Host, done: Completed) -> dict[str, Any]:
    """The JSON object on the last line.

    Raises:
        NoPython, ClusterError: see `probe`.
    """
    if done.code == NO_PYTHON:
        raise NoPython(f"{host.name}: no Python was found")
    lines = done.stdout.decode("utf-8", errors="replace").strip().splitlines()
    try:
        answer = json.loads(lines[-1]) if lines else None
    except ValueError:
        answer = None
    if done.code or not isinstance(answer, dict):
        raise ClusterError(f"{host.name}: its Python did not answer ({done.last_line})")
    return answer


def make_facts(host: Host, answer: Mapping[str, Any], began: float, ended: float) -> HostFacts:
    """The facts in an answer; `began` and `ended` are our clock before and after."""
    values = dict(answer)
    there = float(values.pop("unix_time"))
    interfaces = [
        Interface(**{**entry, "addresses": tuple(entry["addresses"])}) for entry in values.pop("interfaces")
    ]
    return HostFacts(
        host=host,
        interfaces=tuple(interfaces),
        free_ports=tuple(values.pop("free_ports")),
        clock_offset_s=min(0.0, there - began) + max(0.0, there - ended),
        **values,
    )


def make_token() -> str:
    """A secret for one measurement, in hex."""
    return secrets.token_hex(16)
