"""The load: so many clients at once, each asking its next question when its last one is answered.

All first connections are open before the clock starts, and are opened a few at a time: a server with a short
listen backlog (5 in Python's http.server) would else lose some and answer them a second late, which says
nothing of its speed. Later asks of a client pay for their connection. Knows no server by name.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from bench.dialects import Ask, Dialect, Reply
from bench.http_stream import Event, Exchange, StreamFailed, connect, make_request

NUM_CONNECTING = 4
CONNECT_LIMIT_S = 20.0


@dataclass(frozen=True)
class Server:
    """Where a load goes and in what words."""

    host: str
    port: int
    dialect: Dialect
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class LoadResult:
    """The replies in the order of the asks, and the time from the first request sent to the last answer."""

    replies: list[Reply]
    wall_s: float


def run_load(server: Server, asks: Sequence[Ask], num_clients: int, *, limit_s: float) -> LoadResult:
    """Run a load from synchronous code, in an event loop of its own."""
    return asyncio.run(ask_all(server, asks, num_clients, limit_s=limit_s))


async def ask_all(server: Server, asks: Sequence[Ask], num_clients: int, *, limit_s: float) -> LoadResult:
    """Ask everything with at most `num_clients` at once.

    Args:
        limit_s: for one answer; what takes longer is an error in its reply.

    Raises:
        OSError, TimeoutError: the server cannot be reached at all.
    """
    replies = [Reply() for _ in asks]
    pending = deque(zip(asks, replies, strict=True))
    exchanges = await _connect_all(server, min(num_clients, len(asks)))
    start_s = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for exchange in exchanges:
            group.create_task(_run_client(server, exchange, pending, start_s, limit_s))
    return LoadResult(replies, time.perf_counter() - start_s)


async def _connect_all(server: Server, num_connections: int) -> list[Exchange]:
    few = asyncio.Semaphore(NUM_CONNECTING)

    async def connect_one() -> Exchange:
        async with few:
            return await connect(server.host, server.port)

    async with asyncio.timeout(CONNECT_LIMIT_S):
        return list(await asyncio.gather(*(connect_one() for _ in range(num_connections))))


async def _run_client(
    server: Server,
    exchange: Exchange | None,
    pending: deque[tuple[Ask, Reply]],
    start_s: float,
    limit_s: float,
) -> None:
    while pending:
        ask, reply = pending.popleft()
        try:
            async with asyncio.timeout(limit_s):
                exchange = exchange or await connect(server.host, server.port)
                await ask_on(server, exchange, ask, reply, start_s)
        except TimeoutError:
            reply.error = f"no complete answer in {limit_s:g} s"
        except (StreamFailed, OSError) as error:
            reply.error = str(error)
        exchange = None
    if exchange is not None:
        exchange.close()


async def ask_on(server: Server, exchange: Exchange, ask: Ask, reply: Reply, start_s: float) -> None:
    """Ask on an open connection and follow the answer to its end.

    Raises:
        StreamFailed: there was no whole answer.
    """
    dialect = server.dialect
    request = make_request(server.host, server.port, dialect.path, dialect.body(ask), server.headers)
    await follow(server, exchange, request, reply, start_s)


async def follow(server: Server, exchange: Exchange, request: bytes, reply: Reply, start_s: float) -> None:
    """Send a request's bytes and read the answer's events; raises StreamFailed."""

    def on_event(event: Event) -> None:
        server.dialect.read(event, event.at_s - start_s, reply)

    try:
        await exchange.post(request, on_event)
    finally:
        reply.sent_s, reply.sent_unix = exchange.sent_s - start_s, exchange.sent_unix
    if reply.error is None and not (reply.end_s and reply.text_times_s):
        raise StreamFailed("the answer ended without text, or without its last event")
