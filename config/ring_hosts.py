"""Parses the hosts of a ring: WORKER_HOSTS, and the host file of mlx's own tools.

    WORKER_HOSTS    [user@]host[:ranks][=ring address], …   localhost[:ranks] for more ranks of this machine
    RING_HOSTFILE   [{"ssh": "mac1", "ips": ["192.168.5.1"]}, …]   an entry a rank, the first is this machine;
                    also as {"hosts": […]}, which mlx.distributed_config writes (mlx 0.32.4)

Resolves no names and makes no connections. Refuses names that begin with a dash, because they become
arguments of ssh.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

# A frame's header has a time slot for each rank, up to this number (distributed/ring/frame.py).
MAX_RING_SIZE = 16
LOCAL_NAMES = ("localhost", "127.0.0.1")
_NAME = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?"
_ENTRY = re.compile(
    rf"(?:(?P<user>[A-Za-z0-9_.][A-Za-z0-9_.-]*)@)?(?P<host>{_NAME})(?::(?P<ranks>[0-9]{{1,3}}))?"
    rf"(?:=(?P<address>{_NAME}))?"
)


@dataclass(frozen=True)
class WrittenHost:
    """One host of the ring. `ssh` is None for this machine; `address` is None where it is not given."""

    ssh: str | None
    num_ranks: int
    address: str | None = None

    @property
    def name(self) -> str:
        """The host's name without the user."""
        return self.ssh.rpartition("@")[2] if self.ssh else LOCAL_NAMES[0]


def parse_worker_hosts(text: str) -> tuple[WrittenHost, ...]:
    """Read WORKER_HOSTS.

    Raises:
        ValueError: the message names the wrong entry.
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    return _merged([_parse_entry(word) for word in words])


def _parse_entry(word: str) -> WrittenHost:
    match = _ENTRY.fullmatch(word)
    if match is None:
        raise ValueError(f"{word!r} is not [user@]host[:ranks][=address]")
    num_ranks = int(match["ranks"] or 1)
    if not 1 <= num_ranks <= MAX_RING_SIZE:
        raise ValueError(f"{word!r} has {num_ranks} ranks; a host has from 1 to {MAX_RING_SIZE}")
    if match["host"] in LOCAL_NAMES:
        if match["user"] or match["address"]:
            raise ValueError(f"{word!r} is this machine: its address in the ring is RING_ADDRESS")
        return WrittenHost(None, num_ranks)
    if match["address"] is not None:
        check_address(match["address"])
    return WrittenHost(
        f"{match['user']}@{match['host']}" if match["user"] else match["host"], num_ranks, match["address"]
    )


def check_address(text: str) -> None:
    """Refuse an address to which no other rank can connect. Raises: ValueError."""
    if not re.fullmatch(r"[0-9.]+", text):
        return
    try:
        address = ipaddress.IPv4Address(text)
    except ValueError:
        raise ValueError(f"{text} is not an IPv4 address") from None
    if address.is_unspecified or address.is_multicast or address.is_loopback:
        raise ValueError(f"the other hosts cannot connect to {text}")


def read_hostfile(path: Path) -> tuple[WrittenHost, ...]:
    """Read mlx's host file; the first host is this machine, under any ssh name.

    Raises:
        ValueError: the message names the file and the wrong entry.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    entries = data.get("hosts") if isinstance(data, dict) else data
    if not isinstance(entries, list) or not entries:
        raise ValueError(
            f'{path} holds no list of hosts such as [{{"ssh": "mac1", "ips": ["192.168.5.1"]}}, …]'
        )
    found = [_read_entry(path, number, entry) for number, entry in enumerate(entries, start=1)]
    own = found[0].ssh
    return _merged([replace(host, ssh=None) if host.ssh == own else host for host in found])


def _read_entry(path: Path, number: int, entry: Any) -> WrittenHost:
    where = f"{path}, host {number}"
    ssh = entry.get("ssh") if isinstance(entry, dict) else None
    if not isinstance(ssh, str) or not (match := _ENTRY.fullmatch(ssh)) or match["ranks"] or match["address"]:
        raise ValueError(f'{where}: "ssh" must be [user@]host')
    addresses = entry.get("ips") or []
    if not isinstance(addresses, list) or not all(isinstance(one, str) for one in addresses):
        raise ValueError(f'{where}: "ips" must be a list of addresses')
    try:
        for address in addresses[:1]:
            check_address(address)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    # Several addresses mean several cables to the same host; the ring uses the first.
    return WrittenHost(ssh, 1, addresses[0] if addresses else None)


def _merged(hosts: Sequence[WrittenHost]) -> tuple[WrittenHost, ...]:
    """Merge adjacent entries of one host into a host with more ranks; refuse a host in two places."""
    found: list[WrittenHost] = []
    for host in hosts:
        last = found[-1] if found else None
        if last and (last.ssh, last.address) == (host.ssh, host.address):
            found[-1] = replace(last, num_ranks=last.num_ranks + host.num_ranks)
        elif host.ssh is not None and any(host.ssh == other.ssh for other in found):
            raise ValueError(f"{host.ssh} is named twice; {host.ssh}:2 gives it two ranks")
        else:
            found.append(host)
    return tuple(found)


def list_hosts(worker_hosts: str, hostfile: Path | None, local_ranks: int) -> tuple[WrittenHost, ...]:
    """Return all hosts of the ring, this machine first.

    Raises:
        ValueError: the host file cannot be used, or the ring is too large.
    """
    if hostfile is not None:
        hosts = read_hostfile(hostfile)
        if local_ranks not in (1, hosts[0].num_ranks):
            raise ValueError(
                f"{hostfile} gives this machine {hosts[0].num_ranks} ranks, one for each of its entries, "
                f"and LOCAL_RANKS = {local_ranks}"
            )
    else:
        hosts = _merged([WrittenHost(None, local_ranks), *parse_worker_hosts(worker_hosts)])
    if (size := sum(host.num_ranks for host in hosts)) > MAX_RING_SIZE:
        raise ValueError(f"the ring has {size} ranks; it can have {MAX_RING_SIZE}")
    return hosts
