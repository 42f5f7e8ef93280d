"""The outermost layer: every answer has a request id, no foreign host name is served, no traceback leaves.

The host check keeps a web page from reaching a server on the user's machine by giving its own name our
address (DNS rebinding): only names that cannot be such a page's are served. Knows nothing of routes, keys
or bodies.
"""

import ipaddress
import logging
import re
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from frontdoor.errors import FrontDoorError, InvalidRequest, error_response
from spool import make_id

LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})

_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^:\[\]@/\s]+)(:[0-9]{1,5})?")

log = logging.getLogger(__name__)


class Edge:
    """ASGI middleware; leaves `request_id`, `is_request_id_new`, and `received_unix` in `scope["state"]`."""

    def __init__(self, app: ASGIApp, *, own_names: frozenset[str]) -> None:
        self._app = app
        self._own_names = LOCAL_NAMES | own_names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id")
        is_new = given is None or _SANE_ID.fullmatch(given) is None
        request_id = make_id() if given is None or is_new else given
        state = scope.setdefault("state", {})
        state.update(request_id=request_id, is_request_id_new=is_new)
        state.setdefault("received_unix", time.time())  # by the connection, where it is ours
        has_started = False

        async def send_with_id(message: Message) -> None:
            nonlocal has_started
            if message["type"] == "http.response.start":
                has_started = True
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            if is_allowed_host(headers.get("host"), self._own_names):
                await self._app(scope, receive, send_with_id)
            else:
                await error_response(_wrong_host())(scope, receive, send_with_id)
        except ClientDisconnect:
            log.debug("the client left before its request was read")
        except Exception:  # the process boundary of one HTTP request
            if has_started:
                raise
            log.exception("a request failed inside the front door (request id %s)", request_id)
            failure = FrontDoorError("internal error; the log has the details")
            await error_response(failure)(scope, receive, send_with_id)


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
