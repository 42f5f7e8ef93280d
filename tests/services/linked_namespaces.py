"""Two network namespaces joined by a veth pair: a link between two ranks that can be cut, slowed and delayed.

Needs root and `ip netns`; `tc` for the speed. Everything has a name of its own for each test and is removed
at the end. Knows nothing of rings.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import uuid
from dataclasses import dataclass, field

import psutil

SIDES = ("left", "right")
PREFIX = "mlxlink"


def make_names() -> tuple[str, str]:
    """Names that nobody else has."""
    mark = f"{PREFIX}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
    return f"{mark}-{SIDES[0]}", f"{mark}-{SIDES[1]}"


class NoNamespaces(Exception):
    """This machine cannot do it; the message is the reason for the skip."""


@dataclass
class LinkedNamespaces:
    """Both sides up and joined; use it as a context manager."""

    names: tuple[str, str] = field(default_factory=make_names)
    addresses: tuple[str, str] = ("10.78.0.1", "10.78.0.2")

    def __enter__(self) -> LinkedNamespaces:
        if os.geteuid() != 0:
            raise NoNamespaces("network namespaces need root")
        if shutil.which("ip") is None:
            raise NoNamespaces("ip (iproute2) is not installed")
        try:
            self._make()
        except NoNamespaces:
            self._remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._remove()

    def prefix(self, side: int) -> list[str]:
        """What a command begins with to run on a side."""
        return ["ip", "netns", "exec", self.names[side]]

    def cut(self) -> None:
        """Take the link down on the left; the right loses its carrier."""
        self._run(0, "ip", "link", "set", SIDES[0], "down")

    def limit(self, num_bytes_per_second: int) -> None:
        """Slow both directions down by a token bucket.

        Raises:
            NoNamespaces: the kernel has none.
        """
        self._shape("tbf", "rate", f"{8 * num_bytes_per_second}bit", "burst", "2000", "limit", "1000000")

    def delay(self, milliseconds: int) -> None:
        """Hold every packet back, each way.

        Raises:
            NoNamespaces: the kernel has no netem.
        """
        self._shape("netem", "delay", f"{milliseconds}ms")

    def unlimit(self) -> None:
        """Full speed again."""
        for side, name in enumerate(SIDES):
            self._run(side, "tc", "qdisc", "del", "dev", name, "root")

    def _shape(self, *words: str) -> None:
        for side, name in enumerate(SIDES):
            self._run(side, "tc", "qdisc", "replace", "dev", name, "root", *words)

    def _make(self) -> None:
        _remove_stale()
        for name in self.names:
            _run("ip", "netns", "add", name)
        peer = ("peer", "name", SIDES[1], "netns", self.names[1])
        _run("ip", "link", "add", SIDES[0], "netns", self.names[0], "type", "veth", *peer)
        for side, (name, address) in enumerate(zip(SIDES, self.addresses, strict=True)):
            self._run(side, "ip", "address", "add", f"{address}/24", "dev", name)
            self._run(side, "ip", "link", "set", name, "up")
            self._run(side, "ip", "link", "set", "lo", "up")

    def _remove(self) -> None:
        for name in self.names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)

    def _run(self, side: int, *words: str) -> None:
        _run("ip", "netns", "exec", self.names[side], *words)


def _remove_stale() -> None:
    """What tests have left that were killed: the names carry their pids."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=False).stdout
    for name, pid in re.findall(rf"^({PREFIX}-(\d+)-\S+)", listed, re.MULTILINE):
        if not psutil.pid_exists(int(pid)):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def _run(*words: str) -> None:
    try:
        ended = subprocess.run(words, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise NoNamespaces(f"{words[0]} is not installed") from None
    if ended.returncode != 0:
        raise NoNamespaces(f"{' '.join(words)}: {ended.stderr.strip()}")
