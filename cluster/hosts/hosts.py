"""The hosts of the ring: their names, ssh destinations, ring addresses, and which ranks run on them.

Host 0 is this machine and has rank 0. The address for ssh and the address in the ring may differ: the ring
uses the address in the settings, or the IPv4 address of the name that OpenSSH would connect to (`ssh -G`, so
that aliases of ~/.ssh/config count). Opens no connection.
"""

from __future__ import annotations

import ipaddress
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

import psutil

from cluster.processes import PSUTIL_ERRORS
from config import Problem, Settings, SettingsError
from config.ring_hosts import LOCAL_NAMES, WrittenHost, list_hosts
from config.sources import DEFAULT

LOCAL_NAME = LOCAL_NAMES[0]
RESOLVE_LIMIT_S = 10.0
_ANY_PORT = 9  # nothing is sent to it


@dataclass(frozen=True)
class Host:
    """One host: `ssh` is what OpenSSH connects to (None: this machine), `address` its place in the ring."""

    name: str
    ssh: str | None
    address: str
    num_ranks: int

    @property
    def is_local(self) -> bool:
        return self.ssh is None


@dataclass(frozen=True)
class Cluster:
    """The hosts in the order of their ranks; host 0 is this machine."""

    hosts: tuple[Host, ...]

    @property
    def ring_size(self) -> int:
        """Ranks on all hosts."""
        return sum(host.num_ranks for host in self.hosts)

    @property
    def is_single(self) -> bool:
        """Every rank is on this machine."""
        return all(host.is_local for host in self.hosts)

    @property
    def remote_hosts(self) -> tuple[Host, ...]:
        """The hosts behind ssh."""
        return tuple(host for host in self.hosts if not host.is_local)

    @property
    def num_local_ranks(self) -> int:
        """Ranks on this machine, in all its places in the ring."""
        return sum(host.num_ranks for host in self.hosts if host.is_local)

    def host_of(self, rank: int) -> Host:
        """The host on which a rank runs."""
        return next(host for host in self.hosts if rank in self.ranks_of(host))

    def ranks_of(self, host: Host) -> range:
        """The ranks of one of `hosts`, compared by identity: this machine can have two places."""
        first = 0
        for other in self.hosts:
            if other is host:
                return range(first, first + other.num_ranks)
            first += other.num_ranks
        raise ValueError(f"{host.name} is not a host of this ring")


def read_cluster(settings: Settings) -> Cluster:
    """The hosts of the settings, with their addresses.

    Raises:
        SettingsError: naming key, entry and what is allowed.
    """
    key = "RING_HOSTFILE" if settings.ring_hostfile else "WORKER_HOSTS"
    try:
        written = list_hosts(settings.worker_hosts, settings.ring_hostfile, settings.local_ranks)
        remote = {host.ssh: _find_address(host) for host in written if host.ssh}
        own = _find_own_address(settings, written, list(remote.values()))
    except ValueError as error:
        raise SettingsError([Problem(str(settings.origin(key)), f"{key}: {error}", key)]) from None
    return Cluster(
        tuple(
            Host(host.name, host.ssh, remote[host.ssh] if host.ssh else own, host.num_ranks)
            for host in written
        )
    )


def _find_address(host: WrittenHost) -> str:
    """A host's IPv4 address in the ring."""
    assert host.ssh is not None
    name = host.address or ssh_host_name(host.ssh)
    try:
        found = socket.getaddrinfo(name, None, socket.AF_INET, socket.SOCK_STREAM)
    except OSError as error:
        raise ValueError(
            f"the name {name} of {host.ssh} has no IPv4 address here ({error.strerror}); write its ring "
            f"address after it, as in {host.ssh}=192.168.5.2"
        ) from None
    address = str(found[0][4][0])
    if ipaddress.ip_address(address).is_loopback:
        raise ValueError(
            f"{host.ssh} leads to {address}, which only this machine reaches; write its ring address after "
            f"it, as in {host.ssh}=192.168.5.2"
        )
    return address


def ssh_host_name(destination: str) -> str:
    """The name or address that OpenSSH connects to, by ~/.ssh/config."""
    try:
        said = subprocess.run(
            ["ssh", "-G", "--", destination],
            capture_output=True,
            text=True,
            timeout=RESOLVE_LIMIT_S,
            check=False,
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        said = ""
    words = [line.split(maxsplit=1) for line in said.splitlines()]
    names = [pair[1] for pair in words if len(pair) == 2 and pair[0] == "hostname"]
    return names[0] if names else destination.rpartition("@")[2]


def _find_own_address(settings: Settings, written: Sequence[WrittenHost], others: Sequence[str]) -> str:
    """This machine's address in the ring: as set, else the one from which it reaches the others."""
    if written[0].address:
        _check_is_first(written)
        return written[0].address
    if not others or settings.origin("RING_ADDRESS") != DEFAULT:
        if others and ipaddress.ip_address(settings.ring_address).is_loopback:
            raise ValueError(
                f"RING_ADDRESS = {settings.ring_address} (from {settings.origin('RING_ADDRESS')}) is an "
                "address that the other hosts cannot connect to; set this machine's address on the cable "
                "between them, or remove RING_ADDRESS"
            )
        return settings.ring_address
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((others[0], _ANY_PORT))
        except OSError as error:
            raise ValueError(f"there is no route to {others[0]} from here: {error.strerror}") from None
        return str(probe.getsockname()[0])


def _check_is_first(written: Sequence[WrittenHost]) -> None:
    """Refuse a host file whose first host is another machine."""
    own = own_addresses()
    if not own or written[0].address in own:
        return
    for number, host in enumerate(written[1:], start=2):
        if host.address in own:
            raise ValueError(
                f"host {number} ({host.address}) is this machine, but the service starts on the first host, "
                f"{written[0].address}: put this machine first, or start there"
            )
    raise ValueError(
        f"the first host's address {written[0].address} is not an address of this machine "
        f"({', '.join(sorted(own))})"
    )


def own_addresses() -> set[str]:
    """The IPv4 addresses of this machine; empty where psutil cannot say."""
    try:
        found = psutil.net_if_addrs().values()
    except PSUTIL_ERRORS:
        return set()
    return {entry.address for entries in found for entry in entries if entry.family == socket.AF_INET}
