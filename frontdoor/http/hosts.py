"""Checks Host headers: accepts local names, IP addresses and the names in ALLOWED_HOSTS.

The check prevents DNS rebinding: a foreign web page gives its own name this machine's address, and the
browser then sends the page's name as Host. A pattern is a name, `*.name` (all names below it), `.name` (both)
or `*` (any). Knows nothing of requests; docs/security.md has the list for people.
"""

import contextlib
import functools
import ipaddress
import re
import socket
import threading
from collections.abc import Iterable

# Loopback, mDNS, and the names of the host machine in container programs.
LOCAL_NAMES = frozenset(
    {
        "localhost", "*.localhost", "localhost.localdomain", "ip6-localhost", "ip6-loopback", "*.local",
        "host.docker.internal", "gateway.docker.internal", "host.containers.internal",
        "host.lima.internal", "host.orb.internal",
    }
)  # fmt: skip

_HOST = re.compile(r"(\[[0-9a-f:.]+(?:%[0-9a-z.~_-]+)?\]|[^:\[\]@/\s]+)(:[0-9]{1,5})?")


class HostNames:
    """The accepted patterns; `learn` adds this machine's own names."""

    def __init__(self, more: Iterable[str]) -> None:
        self.patterns = LOCAL_NAMES | {name.lower().rstrip(".") for name in more}

    def learn(self) -> None:
        """Add this machine's names; the full one in a thread, because DNS may be slow or silent."""
        name = socket.gethostname().lower().rstrip(".")
        if not name:
            return
        self.patterns |= {name}
        threading.Thread(target=self._learn_full_name, args=(name,), name="full name", daemon=True).start()

    def allows(self, header: str | None) -> bool:
        """Whether a Host header is accepted."""
        return is_allowed_host(header, self.patterns)

    def _learn_full_name(self, name: str) -> None:
        full_name = socket.getfqdn(name).lower().rstrip(".")
        if full_name.startswith(f"{name}."):  # a foreign DNS server may answer with any other name
            self.patterns |= {full_name}


@functools.lru_cache(maxsize=64)
def is_allowed_host(header: str | None, patterns: frozenset[str]) -> bool:
    """Whether a Host header matches a pattern or is an IP address; a rebound name is neither."""
    if header is None:
        return True  # HTTP/1.0 only; browsers always send it
    match = _HOST.fullmatch(header.strip().lower())
    if match is None:
        return False
    name = match[1].strip("[]").rstrip(".")
    return _is_address(name) or _matches(name, patterns)


def _is_address(name: str) -> bool:
    """Whether the name is an address, also in a short form that curl sends unchanged (127.1)."""
    with contextlib.suppress(ValueError):
        return bool(ipaddress.ip_address(name))
    with contextlib.suppress(OSError):
        return bool(socket.inet_aton(name))
    return False


def _matches(name: str, patterns: frozenset[str]) -> bool:
    if not patterns.isdisjoint((name, f".{name}", "*")):
        return True
    _, dot, parent = name.partition(".")
    while dot:
        if not patterns.isdisjoint((f".{parent}", f"*.{parent}")):
            return True
        _, dot, parent = parent.partition(".")
    return False
