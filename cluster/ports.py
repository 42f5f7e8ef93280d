"""Ports: the front door's listening socket, and free ports for a ring.

Ring ports lie below the systems' ephemeral ranges (Linux from 32768, macOS from 49152), so that no outgoing
connection takes one between our check and the rank's bind. Each epoch gets new ones, because MLX's ring binds
with SO_REUSEPORT and a stale rank could share an old one (mlx 0.32.4).
"""

from __future__ import annotations

import contextlib
import errno
import random
import socket

import psutil

from cluster.errors import ClusterError, PortTaken
from cluster.processes import PSUTIL_ERRORS

RING_PORTS = range(20_000, 32_000)
LISTEN_BACKLOG = 2048


def listen(host: str, port: int) -> socket.socket:
    """Bind and listen for the front door.

    Raises:
        PortTaken: naming the process that has it, if the system says.
    """
    family = _family(host)
    try:
        return socket.create_server((host, port), family=family, backlog=LISTEN_BACKLOG)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise describe_taken(host, port) from None
        raise ClusterError(f"cannot listen on API_HOST={host} API_PORT={port}: {error.strerror}") from None


def is_free(host: str, port: int) -> bool:
    """True if the address can be bound now."""
    try:
        listen(host, port).close()
    except PortTaken:
        return False
    return True


def free_ring_ports(address: str, num_ports: int) -> list[int]:
    """Free ports on `address`, in random order."""
    found: list[int] = []
    for port in random.sample(RING_PORTS, k=min(len(RING_PORTS), 64 + 8 * num_ports)):
        if len(found) == num_ports:
            break
        with socket.socket(_family(address), socket.SOCK_STREAM) as probe:
            try:
                probe.bind((address, port))
            except PermissionError as error:
                raise ClusterError(f"cannot bind ring ports on {address}: {error.strerror}") from None
            except OSError as error:
                if error.errno == errno.EADDRNOTAVAIL:  # another port does not help
                    raise ClusterError(f"RING_ADDRESS={address} is not an address of this machine") from None
                continue
        found.append(port)
    if len(found) < num_ports:
        raise ClusterError(f"found only {len(found)} of {num_ports} free ring ports on {address}")
    return found


def host_to_dial(host: str) -> str:
    """The address under which a listening `host` is reached from this machine."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)


def make_url(host: str, port: int) -> str:
    """The front door's URL, for a person."""
    dial = host_to_dial(host)
    return f"http://[{dial}]:{port}" if ":" in dial else f"http://{dial}:{port}"


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def describe_taken(host: str, port: int) -> PortTaken:
    """The error for an address in use, naming the process that has it, if the system says."""
    text = f"port {port} on {host} is taken"
    try:
        connections = psutil.net_connections("tcp")
    except PSUTIL_ERRORS:
        connections = []
    for connection in connections:
        is_it = connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port
        if is_it and connection.pid:
            text += f" by process {connection.pid}"
            with contextlib.suppress(*PSUTIL_ERRORS):
                text += f" ({psutil.Process(connection.pid).name()})"
            break
    return PortTaken(f"{text}: end that process, or choose another port with API_PORT in .env or --port")
