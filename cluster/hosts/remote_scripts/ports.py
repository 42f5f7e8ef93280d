"""Finds free ports on this machine's ring address. remote_ranks.py sends it to hosts, whose environment runs
it.
"""

from __future__ import annotations

import errno
import json
import random
import socket
from typing import Any

# Below the ephemeral ranges of Linux (from 32768) and macOS (from 49152), as in cluster/ports.py.
PORTS = range(20_000, 32_000)


def main(question: dict[str, Any]) -> None:
    """Print {"ports"}; fewer ports than wanted if this machine does not have the address.

    Args:
        question: {"address", "num_ports"}.
    """
    ports = find_ports(question["address"], question["num_ports"])
    print(json.dumps({"ports": ports}))


def find_ports(address: str, num_ports: int) -> list[int]:
    """Free ports on `address`."""
    found: list[int] = []
    for port in random.sample(PORTS, k=64 + 8 * num_ports):
        if len(found) == num_ports:
            break
        with socket.socket() as probe:
            try:
                probe.bind((address, port))
            except OSError as error:
                if error.errno == errno.EADDRNOTAVAIL:  # another port does not help
                    break
                continue
        found.append(port)
    return found
