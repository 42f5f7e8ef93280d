"""uvicorn's HTTP connections, with the limits it lacks and errors in our shape.

    headers that do not arrive within HEADER_TIMEOUT_SECONDS      408 (if anything came at all), closed
    headers larger than MAX_HEADER_BYTES                          431, closed (httptools has no limit)
    more connections than limit_concurrency                       503 as soon as the headers are here
    more than NUM_TURNED_AWAY beyond that                         503 at once, unread: descriptors stay free
    bytes that are no HTTP                                        400
    an answer of unknown length to an HTTP/1.0 client             as it is, until the connection closes

It also notes for each request when its first bytes came, which nothing of ours sees earlier, and whether it
is whole (frontdoor/scope.py).
Uses the methods that uvicorn 0.54's HttpToolsProtocol offers to asyncio and to the parser, and `self.app`.
Knows nothing of routes.
"""

import asyncio
import logging
import time
from functools import partial
from typing import Any

from starlette.types import Message, Receive, Scope, Send
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from frontdoor.errors import (
    BadHttp,
    FrontDoorError,
    HeadersTooLarge,
    HeadersTooSlow,
    TooManyConnections,
    error_response,
)
from frontdoor.events import to_json
from spool import make_id

HEADER_TIMEOUT_SECONDS = 10.0
MAX_HEADER_BYTES = 64 * 1024
NUM_TURNED_AWAY = 32

log = logging.getLogger(__name__)


class Connection(HttpToolsProtocol):
    """One client's connection."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._max_connections = self.limit_concurrency
        self.limit_concurrency = None  # uvicorn's own answer at the limit is plain text
        self._served_app = self.app
        self._header_timer: asyncio.TimerHandle | None = None
        self._num_header_bytes = 0
        self._read_unix = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self._is_over_limit(NUM_TURNED_AWAY):
            self._refuse(TooManyConnections())
            return
        if self._max_connections is not None and len(self.connections) == self._max_connections + 1:
            log.warning("more than %d connections: further ones get a 503", self._max_connections)
        self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._have_headers()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._read_unix = time.time()
        super().data_received(data)
        # What came with the headers in one piece may be body: only headers that are not over count.
        if not self._is_between_requests() or self.transport.is_closing():
            return
        if self._header_timer is None:
            self._expect_headers()
        self._num_header_bytes += len(data)
        if self._num_header_bytes > MAX_HEADER_BYTES:
            self._refuse(HeadersTooLarge(f"the headers are larger than {MAX_HEADER_BYTES} bytes"))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["state"]["received_unix"] = self._read_unix

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self.scope["state"]["is_whole"] = True

    def on_headers_complete(self) -> None:
        self._have_headers()
        self.app = _turn_away if self._is_over_limit(0) else self._served_app
        if self.parser.get_http_version() == "1.0":
            self.app = partial(_serve_unframed, self.app)
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(BadHttp("this is not HTTP/1.1"))

    def _is_over_limit(self, num_more: int) -> bool:
        return self._max_connections is not None and len(self.connections) > self._max_connections + num_more

    def _is_between_requests(self) -> bool:
        cycle: Any = self.cycle  # None before the first request, whatever uvicorn's annotation says
        return cycle is None or cycle.response_complete

    def _expect_headers(self) -> None:
        self._num_header_bytes = 0
        self._header_timer = self.loop.call_later(HEADER_TIMEOUT_SECONDS, self._on_header_timeout)

    def _have_headers(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _on_header_timeout(self) -> None:
        if self._num_header_bytes:
            self._refuse(HeadersTooSlow(f"the headers did not arrive within {HEADER_TIMEOUT_SECONDS:g} s"))
        else:  # a browser's spare connection: an answer to no question would be shown to its user
            self._have_headers()
            self.transport.close()

    def _refuse(self, error: FrontDoorError) -> None:
        """Answer and close, without any of what serves requests."""
        self._have_headers()
        if self.transport.is_closing():
            return
        body = to_json(error.body()).encode()
        headers = {
            **error.headers,
            "content-type": "application/json",
            "content-length": str(len(body)),
            "x-request-id": make_id(),
            "connection": "close",
        }
        lines = "".join(f"{name.lower()}: {value}\r\n" for name, value in headers.items())
        self.transport.write(STATUS_LINE[error.status] + lines.encode() + b"\r\n" + body)
        self.transport.close()


async def _turn_away(scope: Scope, receive: Receive, send: Send) -> None:
    """The app that is served at the limit."""
    response = error_response(TooManyConnections(), scope["path"])
    response.headers["x-request-id"] = make_id()
    await response(scope, receive, send)


async def _serve_unframed(app: ASGI3Application, scope: Scope, receive: Receive, send: Send) -> None:
    """Keep uvicorn from cutting the body into chunks, which came with HTTP/1.1."""
    cycle: RequestResponseCycle = send.__self__  # type: ignore[attr-defined]
    cycle.chunked_encoding = False

    async def send_unframed(message: Message) -> None:
        cycle.expected_content_length = len(message.get("body", b""))
        await send(message)

    await app(scope, receive, send_unframed)  # type: ignore[arg-type]
