"""One HTTP request on a connection of its own, its answer taken apart into server-sent events as it arrives.

Every event carries the time at which its last bytes came out of the socket. Connecting is apart from sending,
so that a load can have all its connections open before its clock starts. Knows nothing of what the events
mean.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httptools

MAX_ERROR_BYTES = 500


class StreamFailed(Exception):
    """The server refused, closed too early, or spoke no HTTP; becomes the error of one reply."""


@dataclass(frozen=True)
class Event:
    """One server-sent event; `at_s` is on the clock of time.perf_counter."""

    at_s: float
    name: str
    data: str


class EventReader:
    """Takes bytes, gives events; comments and fields other than event and data are skipped."""

    def __init__(self, on_event: Callable[[Event], None]) -> None:
        self._on_event = on_event
        self._rest = b""
        self._name = "message"
        self._data: list[str] = []

    def feed(self, data: bytes, at_s: float) -> None:
        """Take the next bytes, wherever they were cut."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for raw in lines:
            self._take(raw.removesuffix(b"\r"), at_s)

    def _take(self, raw: bytes, at_s: float) -> None:
        if not raw:
            if self._data:
                self._on_event(Event(at_s, self._name, "\n".join(self._data)))
            self._name, self._data = "message", []
            return
        field, _, value = raw.decode("utf-8").partition(":")
        if field == "data":
            self._data.append(value.removeprefix(" "))
        elif field == "event":
            self._name = value.removeprefix(" ")


class Exchange(asyncio.Protocol):
    """One connection, one request, one answer; made by `connect`."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self._finished: asyncio.Future[None] = loop.create_future()
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._events: EventReader | None = None
        self._now_s = 0.0
        self._error_body = b""
        self.status = 0
        self.sent_s = 0.0  # time.perf_counter
        self.sent_unix = 0.0

    async def post(self, request: bytes, on_event: Callable[[Event], None]) -> None:
        """Send the request and follow its answer to the end.

        Raises:
            StreamFailed: no complete answer with status 200.
        """
        assert self._transport is not None
        self._events = EventReader(on_event)
        self.sent_unix, self.sent_s = time.time(), time.perf_counter()
        self._transport.write(request)
        try:
            await self._finished
        finally:
            self._transport.abort()
        if self.status != 200:
            raise StreamFailed(f"status {self.status}: {read_error(self._error_body)}")

    def close(self) -> None:
        """Give up a connection that was not used."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._now_s = time.perf_counter()
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, UnicodeDecodeError) as error:
            self._end(StreamFailed(f"not HTTP with events: {error}"))

    def connection_lost(self, exc: Exception | None) -> None:
        # An HTTP/1.0 answer without a length ends here, and so does one that was cut off: the events tell.
        early = StreamFailed("the connection was closed before an answer") if self.status == 0 else None
        self._end(StreamFailed(f"the connection broke: {exc}") if exc else early)

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        if self.status != 200:
            self._error_body = (self._error_body + body)[:MAX_ERROR_BYTES]
        elif self._events is not None:
            self._events.feed(body, self._now_s)

    def on_message_complete(self) -> None:
        self._end(None)

    def _end(self, error: StreamFailed | None) -> None:
        if self._finished.done():
            return
        if error is None:
            self._finished.set_result(None)
        else:
            self._finished.set_exception(error)
            self._finished.exception()  # taken note of, also where nobody posts on this connection any more


async def connect(host: str, port: int) -> Exchange:
    """Open a connection. Raises OSError."""
    _, exchange = await asyncio.get_running_loop().create_connection(Exchange, host, port)
    return exchange


def make_request(
    host: str, port: int, path: str, body: Mapping[str, Any] | None, headers: Mapping[str, str]
) -> bytes:
    """The bytes of a POST, or without a body of a GET, whose connection ends with its answer."""
    content = b"" if body is None else json.dumps(body).encode()
    fields = {
        "host": f"{host}:{port}",
        "accept": "text/event-stream",
        "connection": "close",
        **({} if body is None else {"content-type": "application/json", "content-length": str(len(content))}),
        **headers,
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"{'GET' if body is None else 'POST'} {path} HTTP/1.1\r\n{head}\r\n".encode() + content


def read_error(body: bytes) -> str:
    """The message in an error's body, or the body."""
    try:
        error = json.loads(body)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        return body.decode("utf-8", errors="replace")
