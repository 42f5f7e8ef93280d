"""Access control: API keys from API_KEYS_FILE (as bearer or in x-api-key), and no web page of another site.

Keys are stored and compared as SHA-256 digests only. The owner of a request is a short digest of its key, so
that no file contains the key. Without API_KEYS_FILE the owner is "". Knows no route.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

from config.api_keys import read_api_keys
from config.errors import ConfigError
from frontdoor.http.errors import ForbiddenOrigin, InvalidRequest, Unauthorized, error_response
from frontdoor.http.scope import header, notes

# A load balancer, a browser's first visit and a new user need these before they have a key.
OPEN_PATHS = frozenset({"/", "/ui", "/health", "/livez", "/readyz"})
OPEN_PREFIX = "/ui/"


class KeysUnreadable(ConfigError):
    """API_KEYS_FILE is missing, unreadable or empty; the start stops with the message."""

    code = "keys_unreadable"


class Keys:
    """The digests of the accepted keys; `None` accepts every client."""

    def __init__(self, keys: Iterable[str] | None) -> None:
        self._digests = None if keys is None else frozenset(_digest(key) for key in keys)

    @classmethod
    def load(cls, path: Path | None) -> "Keys":
        """Read one key a line; empty lines and lines that begin with # are skipped.

        Raises:
            KeysUnreadable: the file has no readable key (the entry point prints the message).
        """
        if path is None:
            return cls(None)
        try:
            keys = read_api_keys(path)
        except (OSError, UnicodeDecodeError) as error:
            raise KeysUnreadable(f"API_KEYS_FILE: {error}") from error
        if not keys:
            raise KeysUnreadable(f"API_KEYS_FILE: {path} holds no key; write one key a line")
        return cls(keys)

    def owner(self, authorization: str | None, api_key: str | None = None) -> str:
        """Return the owner of a request; clients of Anthropic's API send x-api-key instead, or as well.

        Raises:
            Unauthorized: keys are required, and the request has none or an unknown one.
        """
        if self._digests is None:
            return ""
        scheme, _, bearer = (authorization or "").partition(" ")
        given = [key.strip() for key in (bearer if scheme.lower() == "bearer" else "", api_key or "")]
        if not any(given):
            raise Unauthorized("an API key is required: send the header Authorization: Bearer KEY")
        for digest in (_digest(key) for key in given if key):
            if digest in self._digests:
                return digest[:16]
        raise Unauthorized("this API key is unknown; API_KEYS_FILE on the server lists the valid keys")


class Gate:
    """ASGI middleware; checks origin and key, and notes the request's owner."""

    def __init__(self, app: ASGIApp, *, keys: Keys, origins: frozenset[str]) -> None:
        self._app = app
        self._keys = keys
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            check_origin(header(scope, b"origin"), header(scope, b"host"), self._origins)
            path = scope["path"]
            is_open = path in OPEN_PATHS or path.startswith(OPEN_PREFIX)
            notes(scope)["owner"] = "" if is_open else self._owner(scope)
        except InvalidRequest as error:
            await error_response(error, scope["path"])(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _owner(self, scope: Scope) -> str:
        return self._keys.owner(header(scope, b"authorization"), header(scope, b"x-api-key"))


def check_origin(origin: str | None, host: str | None, allowed: frozenset[str]) -> None:
    """Refuse requests of other sites' web pages.

    Raises:
        ForbiddenOrigin: the page is neither this server's nor of a site in CORS_ORIGINS.
    """
    if origin is None or "*" in allowed or origin.lower() in allowed:
        return
    if host is not None and origin.lower().partition("://")[2] == host.lower():
        return
    raise ForbiddenOrigin("this page's site may not use this server; add its origin to CORS_ORIGINS in .env")


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
