"""Hosts that are not there, and what they say of themselves: for tests that ask no other host."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster.hosts.hosts import Host
from cluster.hosts.probe import HostFacts, Interface
from cluster.hosts.worker_setup import Worker
from config import Settings, load_settings

GB = 10**9
MAC1, MAC2 = Host("localhost", None, "192.168.5.1", 1), Host("mac2", "anna@mac2", "192.168.5.2", 1)
WORKER = Worker(MAC2, "~/ring files/it's")
BRIDGE = Interface("bridge0", "thunderbolt", ("192.168.5.2",), None, True)
WIFI = Interface("en1", "wifi", ("192.168.1.23",), None, True)
HERE = {"mlx": "0.32.4", "mlx-lm": "0.32.2"}
FACTS = HostFacts(
    host=MAC2,
    hostname="mac2",
    system="Darwin",
    release="15.1",
    machine="arm64",
    num_cores=10,
    python="/opt/homebrew/bin/python3.13",
    python_version="3.13.1",
    can_make_environments=True,
    total_memory_bytes=64 * GB,
    free_memory_bytes=40 * GB,
    gpu_wired_limit_bytes=None,
    chip="Apple M4 Max",
    worker_dir="/opt/mlx-ring",
    disk_free_bytes=200 * GB,
    interfaces=(BRIDGE, WIFI),
    versions={**HERE, "mlx-metal": "0.32.4"},
    rsync="2.6.9 (openrsync)",
    firewall=False,
    clock_offset_s=0.0,
    free_ports=(20_001,),
    port_error=None,
    model_files=None,
)


def make_facts(host: Host, **told: Any) -> HostFacts:
    """What a host says of itself: a Linux machine with 8 GB, 4 of them free, unless told."""
    usual = {
        "system": "Linux",
        "machine": "x86_64",
        "total_memory_bytes": 8 * GB,
        "free_memory_bytes": 4 * GB,
        "chip": "",
        "versions": {},
    }
    return replace(FACTS, host=host, hostname=host.name, **{**usual, **told})


def load(folder: Path, **values: str) -> Settings:
    """Settings of a service in a folder."""
    return load_settings({"STATE_DIR": str(folder / "state"), **values}, root=folder, environ={})
