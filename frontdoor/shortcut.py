"""The innermost layer: what takes requests in is called at once, all else goes on to FastAPI's routes.

These endpoints read their bodies themselves and need nothing of what FastAPI does for a route (dependencies,
exit stacks, matching one path after another); it would cost each request a tenth of a millisecond and more.
Their routes stay where they are, for the OpenAPI page and for answers to other methods. Knows paths, not
what lies behind them.
"""

from collections.abc import Awaitable, Callable, Mapping

from fastapi import Request
from fastapi.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from frontdoor.errors import FrontDoorError, error_response

Endpoint = Callable[[Request], Awaitable[Response]]


class Shortcut:
    """ASGI middleware; `endpoints` answer POST, by path without parameters."""

    def __init__(self, app: ASGIApp, *, endpoints: Mapping[str, Endpoint]) -> None:
        self._app = app
        self._endpoints = endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        endpoint = None
        if scope["type"] == "http" and scope["method"] == "POST":
            endpoint = self._endpoints.get(scope["path"])
        if endpoint is None:
            await self._app(scope, receive, send)
            return
        try:
            response = await endpoint(Request(scope, receive, send))
        except FrontDoorError as error:
            response = error_response(error, scope["path"])
        await response(scope, receive, send)
