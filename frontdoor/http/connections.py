"""uvicorn's HTTP connections, with the limits it lacks and errors in our shape.

    headers that do not arrive within HEADER_TIMEOUT_SECONDS      408 (if any bytes arrived), closed
    headers larger than MAX_HEADER_BYTES                          431, closed (httptools has no limit)
    more connections than limit_concurrency                       503 after the headers
    more than NUM_TURNED_AWAY beyond that                         503 at once, unread: descriptors stay free
    bytes that are not HTTP                                       400
    an answer of unknown length to an HTTP/1.0 client             unframed, until the connection closes
    a request for another protocol (Upgrade: h2c or websocket)    ignored: HTTP/1.1, with the body
    an answer before the whole body has arrived (no key, no path) the rest is read and dropped, within limits
    an HTTP/1.1 client that shuts its write side and waits        answered

Closing instead of reading the rest would reset the connection, and the client would lose its answer. A
client that shuts its write side looks like one that left, until a write to the latter fails. So the
connection writes bytes without meaning now and then: "100 Continue" before an answer, an empty comment in a
stream of events, and in another stream a few zeros, with which the length of the next chunk begins. HTTP/1.0
has no such bytes before an answer, so there a client that shuts its write side counts as gone: proxies that
speak HTTP/1.0 close their connection when their own client leaves. The connection also notes the arrival of
each request's first bytes (scope.py). Uses uvicorn 0.54's HttpToolsProtocol and RequestResponseCycle. Knows
nothing of routes.
"""

import asyncio
import logging
import time
from functools import partial
from typing import Any

import httptools
from starlette.types import Message, Receive, Scope, Send
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from config.errors import ServiceError
from frontdoor.http.dialects import error_body
from frontdoor.http.errors import (
    BadHttp,
    HeadersTooLarge,
    HeadersTooSlow,
    TooManyConnections,
    body_of,
    error_response,
    headers_of,
)
from frontdoor.http.events import to_json
from frontdoor.http.paths import canonical_path
from spool import make_id

HEADER_TIMEOUT_SECONDS = 10.0
MAX_HEADER_BYTES = 64 * 1024
NUM_TURNED_AWAY = 32
MAX_DROPPED_BYTES = 64 * 2**20  # of a body after its answer, for HEADER_TIMEOUT_SECONDS
FIRST_PROBE_SECONDS = 0.05
PROBE_SECONDS = 0.3  # a client that is gone is noticed within twice this time
MAX_ZEROS = 4  # curl and Go take chunk lengths of up to 16 digits
UPGRADING = frozenset({b"connection", b"upgrade", b"http2-settings"})

log = logging.getLogger(__name__)


class Connection(HttpToolsProtocol):
    """One client's connection."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.url = b""  # of the request that is being read, as far as it has come
        self._max_connections = self.limit_concurrency
        self.limit_concurrency = None  # uvicorn's own answer at the limit is plain text
        self._served_app = self.app
        self._header_timer: asyncio.TimerHandle | None = None
        self._num_header_bytes = 0
        self._num_dropped_bytes = 0
        self._num_zeros = 0
        self._is_in_body = False
        self._closes_after_body = False
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
        self._unset_keepalive_if_required()
        was_in_body = self._is_in_body
        self._parse(data)
        # Bytes in one piece with the headers may be body: only incomplete headers count.
        if not self._is_between_requests() or self.transport.is_closing():
            return
        if was_in_body or self._is_in_body:
            self._num_dropped_bytes += len(data)
            if self._num_dropped_bytes > MAX_DROPPED_BYTES:
                self.transport.close()
            return
        if self._header_timer is None:
            self._expect_headers()
        self._num_header_bytes += len(data)
        if self._num_header_bytes > MAX_HEADER_BYTES:
            self._refuse(HeadersTooLarge(f"the headers are larger than {MAX_HEADER_BYTES} bytes"))

    def eof_received(self) -> bool:  # type: ignore[override]
        """Keep the connection (True) where an answer is due that the client may still read."""
        cycle: Any = self.cycle
        if self._is_between_requests() or self.pipeline or cycle.more_body:
            return False
        if not cycle.response_started and self.scope["http_version"] == "1.0":
            return False  # HTTP/1.0 has no "100 Continue", so a probe cannot show whether it left
        cycle.keep_alive = False
        self._probe(FIRST_PROBE_SECONDS)
        return True

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["state"]["received_unix"] = self._read_unix

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        super().on_message_complete()
        self._is_in_body = False
        if not self.cycle.response_complete:
            self.cycle.keep_alive = self.cycle.keep_alive and not self._closes_after_body
        elif self._closes_after_body:
            self.transport.close()
        else:
            self._have_headers()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def on_response_complete(self) -> None:
        if self._is_in_body and self.cycle.response_complete and not self.transport.is_closing():
            self._num_dropped_bytes = 0
            self._expect_headers()
        super().on_response_complete()

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            return  # the head is read again without the upgrade
        self._have_headers()
        self.app = _turn_away if self._is_over_limit(0) else self._served_app
        if self.parser.get_http_version() == "1.0":
            self.app = partial(_serve_unframed, self.app)
        super().on_headers_complete()
        self._is_in_body = True
        # After an answer, a client that waits for "100 Continue" may still send its body, or not.
        self._closes_after_body = not self.cycle.keep_alive and not self.expect_100_continue
        self.cycle.keep_alive = not self.expect_100_continue

    def _parse(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._parse_without_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            if self._has_begun_to_answer():  # the client would read a second answer as a part of the first
                self.transport.close()
            else:
                self._refuse(BadHttp("this is not HTTP/1.1"))

    def _has_begun_to_answer(self) -> bool:
        cycle: Any = self.cycle
        is_due = cycle is not None and (self._is_in_body or not cycle.response_complete)
        return is_due and bool(cycle.response_started)

    def _parse_without_upgrade(self, rest: bytes) -> None:
        """Read the head again without the upgrade: otherwise the parser skips the body."""
        method = self.parser.get_method()
        if method == b"CONNECT":
            self._refuse(BadHttp("this server is not a proxy"))
            return
        is_last = any(name == b"connection" and b"close" in value.lower() for name, value in self.headers)
        kept = [(name, value) for name, value in self.headers if name not in UPGRADING]
        kept += [(b"connection", b"close")] if is_last else []
        version = self.parser.get_http_version().encode()
        head = [b"%s %s HTTP/%s" % (method, self.url, version), *(b"%s: %s" % field for field in kept)]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        self._parse(b"\r\n".join([*head, b"", rest]))

    def _probe(self, next_seconds: float) -> None:
        """Write bytes without meaning; by the next write at the latest, asyncio notices a reset."""
        cycle: Any = self.cycle
        if self.transport.is_closing() or cycle.response_complete:
            return
        if not cycle.response_started:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        elif self.scope["state"].get("is_event_stream"):
            self.transport.write(b"3\r\n:\n\n\r\n" if cycle.chunked_encoding else b":\n\n")
        elif cycle.chunked_encoding and self._num_zeros < MAX_ZEROS:
            self._num_zeros += 1
            self.transport.write(b"0")  # the next chunk's length begins with it
        self.loop.call_later(next_seconds, self._probe, PROBE_SECONDS)

    def _is_over_limit(self, num_more: int) -> bool:
        return self._max_connections is not None and len(self.connections) > self._max_connections + num_more

    def _is_between_requests(self) -> bool:
        cycle: Any = self.cycle  # None before the first request, unlike uvicorn's annotation
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
        else:  # a browser's spare connection: an answer without a request would confuse it
            self._have_headers()
            self.transport.close()

    def _refuse(self, error: ServiceError) -> None:
        """Answer with an error and close, without the app."""
        self._have_headers()
        if self.transport.is_closing():
            return
        path = canonical_path(self.url.decode("latin-1").partition("?")[0], frozenset())
        body = to_json(error_body(path, error.status, body_of(error))).encode()
        headers = {
            **headers_of(error),
            "content-type": "application/json",
            "content-length": str(len(body)),
            "x-request-id": make_id(),
            "connection": "close",
        }
        lines = "".join(f"{name.lower()}: {value}\r\n" for name, value in headers.items())
        self.transport.write(STATUS_LINE[error.status] + lines.encode() + b"\r\n" + body)
        self.transport.close()


async def _turn_away(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer as the app of a connection over the limit."""
    response = error_response(TooManyConnections(), canonical_path(scope["path"], frozenset()))
    response.headers.update({"x-request-id": make_id(), "connection": "close"})
    await response(scope, receive, send)


async def _serve_unframed(app: ASGI3Application, scope: Scope, receive: Receive, send: Send) -> None:
    """Stop uvicorn from sending chunks, which HTTP/1.0 does not have."""
    cycle: RequestResponseCycle = send.__self__  # type: ignore[attr-defined]
    cycle.chunked_encoding = False

    async def send_unframed(message: Message) -> None:
        cycle.expected_content_length = len(message.get("body", b""))
        await send(message)

    await app(scope, receive, send_unframed)  # type: ignore[arg-type]
