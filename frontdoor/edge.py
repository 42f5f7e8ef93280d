"""The outermost layer: every answer has a request id, no foreign host name is served, no traceback leaves.

The host check keeps a web page from reaching a server on the user's machine by giving its own name our
address (DNS rebinding): only names that cannot be such a page's are served. Knows nothing of routes, keys
or bodies.
"""

import functools
import ipaddress
import logging
import re
import time

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from frontdoor.errors import InvalidRequest, error_response, internal_error
from frontdoor.scope import header, notes
from spool import make_id

LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})

_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^:\[\]@/\s]+)(:[0-9]{1,5})?")

log = logging.getLogger(__name__)


class Edge:
    """ASGI middleware; see frontdoor/scope.py for what it leaves."""

    def __init__(self, app: ASGIApp, *, own_names: frozenset[str]) -> None:
        self._app = app
        self._own_names = LOCAL_NAMES | own_names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = header(scope, b"x-request-id")
        is_new = given is None or _SANE_ID.fullmatch(given) is None
        request_id = make_id() if given is None or is_new else given
        left = notes(scope)
        left.update(request_id=request_id, is_request_id_new=is_new)
        left.setdefault("received_unix", time.time())  # by the connection, where it is ours
        has_started = False

        async def send_with_id(message: Message) -> None:
            nonlocal has_started
            if message["type"] == "http.response.start":
                has_started = True
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            if is_allowed_host(header(scope, b"host"), self._own_names):
                await self._app(scope, receive, send_with_id)
            else:
                await error_response(_wrong_host())(scope, receive, send_with_id)
        except ClientDisconnect:
            log.debug("the client left before its request was read")
        except Exception:  # the process boundary of one HTTP request
            log.exception("a request failed inside the front door (request id %s)", request_id)
            if not has_started:  # else the server closes what is not whole
                await error_response(internal_error())(scope, receive, send_with_id)


@functools.lru_cache(maxsize=64)
def is_allowed_host(header: str | None, names: frozenset[str]) -> bool:
    """Tell whether a Host header is one of our names or an IP address (a rebound name is neither)."""
    if header is None:
        return True  # HTTP/1.0 only; browsers always send it
    match = _HOST.fullmatch(header.strip().lower())
    if match is None:
        return False
    name = match[1].strip("[]").rstrip(".")
    if name in names:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _wrong_host() -> InvalidRequest:
    return InvalidRequest("unknown Host header: use localhost, an IP address, or the name set as API_HOST")
