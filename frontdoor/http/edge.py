"""The outermost layer: canonical paths, HEAD as GET without a body, a request id on every answer, the check
of the host name, and a 500 without a traceback.

Knows nothing of routes, API keys or bodies.
"""

import logging
import time

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from frontdoor.http.bodies import MAX_SHOWN
from frontdoor.http.errors import InvalidRequest, error_response, internal_error
from frontdoor.http.hosts import HostNames
from frontdoor.http.paths import with_canonical_path
from frontdoor.http.scope import header, notes
from spool import make_id
from spool.messages import is_sane_client_id

log = logging.getLogger(__name__)


class Edge:
    """ASGI middleware; frontdoor/http/scope.py lists its notes."""

    def __init__(self, app: ASGIApp, *, hosts: HostNames, v1_names: frozenset[str]) -> None:
        self._app = app
        self._hosts = hosts
        self._v1_names = v1_names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope = with_canonical_path(scope, self._v1_names)
        given = header(scope, b"x-request-id")
        is_new = given is None or not is_sane_client_id(given)
        request_id = make_id() if given is None or is_new else given
        left = notes(scope)
        left.update(request_id=request_id, is_request_id_new=is_new)
        left.setdefault("received_unix", time.time())  # `Connection` has set it already
        if scope["method"] == "HEAD":
            scope, send = {**scope, "method": "GET"}, _send_head(send)
        has_started = False

        async def send_with_id(message: Message) -> None:
            nonlocal has_started
            if message["type"] == "http.response.start":
                has_started = True
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = headers["request-id"] = request_id  # Anthropic's name for it
            await send(message)

        try:
            host = header(scope, b"host")
            if self._hosts.allows(host):
                await self._app(scope, receive, send_with_id)
            else:
                await error_response(_wrong_host(host or ""), scope["path"])(scope, receive, send_with_id)
        except ClientDisconnect:
            log.debug("the client left before its request was read")
        except Exception:  # the process boundary of one HTTP request
            log.exception("the front door failed to answer a request (request id %s)", request_id)
            if not has_started:  # otherwise the server closes the incomplete answer
                await error_response(internal_error(), scope["path"])(scope, receive, send_with_id)


def _send_head(send: Send) -> Send:
    """Send only the head, as a complete answer."""

    async def send_head(message: Message) -> None:
        if message["type"] == "http.response.start":
            await send(message)
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    return send_head


def _wrong_host(given: str) -> InvalidRequest:
    return InvalidRequest(
        f"unknown Host header {given[:MAX_SHOWN]!r}: use localhost, an IP address, a name of this "
        "machine or API_HOST, or add this name to ALLOWED_HOSTS in .env"
    )
