"""Measures the links of the ring: from each host to the next one, over the ring addresses, one by one.

Rank r connects to rank r + 1 and the last one to rank 0, so each host must reach the next. Measures over such
a connection the round trip of one byte and the bandwidth both ways. Knows nothing of what a good link is.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from cluster.errors import ClusterError
from cluster.hosts.hosts import Host
from cluster.hosts.probe import make_python_command, make_token, read_answer
from cluster.hosts.remote_program import make_program
from cluster.hosts.ssh import run_on, run_words, shell_words
from config import Settings

CONNECT_LIMIT_S = 4.0
# The server waits for a client that ssh still has to start on a busy host.
SERVE_LIMIT_S = 20.0
SPAN_S = 0.4  # of each of the three measurements
LINK_LIMIT_S = 30.0


@dataclass(frozen=True)
class Link:
    """The link from one host to the next; `trouble` is why there are no figures."""

    source: Host
    target: Host
    latency_us: float | None = None  # there and back
    send_mbps: float | None = None  # from source to target
    receive_mbps: float | None = None
    trouble: str = ""
    source_address: str = ""  # from which the source connects, by its routes


def list_links(hosts: Sequence[Host]) -> list[tuple[Host, Host]]:
    """The pairs (from, to) of different hosts that are neighbours in the ring."""
    places = list({host.address: host for host in hosts}.values())
    following = [*hosts[1:], *hosts[:1]] if len(places) > 1 else []
    return [
        (one, other) for one, other in zip(hosts, following, strict=False) if one.address != other.address
    ]


async def measure_link(source: Host, target: Host, settings: Settings, port: int = 0) -> Link:
    """Measure one link: a server on the target, on a port that the ring could use, a client on the source."""
    token = make_token()
    question = {"token": token, "address": target.address, "limit_s": CONNECT_LIMIT_S, "span_s": SPAN_S}
    try:
        async with _serving(
            target, {**question, "role": "server", "port": port, "limit_s": SERVE_LIMIT_S}, settings
        ) as served:
            done = await run_on(
                source,
                make_python_command(source, settings),
                input=make_program("link", {**question, "role": "client", "port": served}),
                timeout_s=LINK_LIMIT_S,
            )
            answer = read_answer(source, done)
    except ClusterError as error:
        return Link(source, target, trouble=str(error))
    if "error" in answer:
        return Link(source, target, trouble=answer["error"])
    figures = (answer["latency_us"], answer["send_mbps"], answer["receive_mbps"])
    return Link(source, target, *figures, source_address=answer["from"])


@contextlib.asynccontextmanager
async def _serving(host: Host, question: dict[str, object], settings: Settings) -> AsyncIterator[int]:
    """The server's port while it runs; ends the server, which also ends by itself after its limit."""
    words = shell_words(host, make_python_command(host, settings))
    said: asyncio.Queue[bytes] = asyncio.Queue()
    program = make_program("link", question)
    server = asyncio.create_task(
        run_words(words, input=program, timeout_s=2 * LINK_LIMIT_S, on_output=said.put_nowait)
    )
    line = asyncio.create_task(said.get())
    try:
        await asyncio.wait([server, line], timeout=LINK_LIMIT_S, return_when=asyncio.FIRST_COMPLETED)
        yield _read_port(host, line.result() if line.done() else b"")
    finally:
        server.cancel()
        line.cancel()
        await asyncio.gather(server, line, return_exceptions=True)


def _read_port(host: Host, line: bytes) -> int:
    try:
        answer = json.loads(line)
    except ValueError:
        raise ClusterError(f"{host.name}: the measurement did not start there") from None
    if "error" in answer:
        raise ClusterError(f"{host.name} cannot listen on {host.address}: {answer['error']}")
    return int(answer["port"])
