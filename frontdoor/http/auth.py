"""Access control: API keys from API_KEYS_FILE (as bearer or in x-api-key), and no web page of another site.

Keys are stored and compared as SHA-256 digests only. The owner of a request is a short digest of its key, so
that no file contains the key. Without API_KEYS_FILE the owner is "". Knows no route.
"""

import hmac
import logging
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

from config.api_keys import OWNER_LENGTH, ApiKey, KeysUnreadable, hash_key, read_api_keys
from config.live import mark_files
from frontdoor.http.errors import ForbiddenOrigin, InvalidRequest, Unauthorized, error_response
from frontdoor.http.scope import header, notes

# A load balancer, a browser's first visit and a new user need these before they have a key.
OPEN_PATHS = frozenset({"/", "/ui", "/health", "/livez", "/readyz"})
OPEN_PREFIX = "/ui/"

log = logging.getLogger(__name__)


class Keys:
    """The accepted keys; without a file every client is accepted.

    An edit of the file holds from the next request on. After a wrong one the earlier keys stay.
    """

    def __init__(self, path: Path | None) -> None:
        """Raises: KeysUnreadable (the entry point prints the message)."""
        self._path = path
        self._mark: object = None
        self._trouble = ""  # logged once
        self._by_owner: dict[str, ApiKey] = {}
        if path is not None:
            self._read(path)

    @property
    def are_required(self) -> bool:
        return self._path is not None

    def owner(self, authorization: str | None, api_key: str | None = None) -> str:
        """Return the owner of a request; clients of Anthropic's API send x-api-key instead, or as well.

        Raises:
            Unauthorized: keys are required, and the request has none or an unknown one.
        """
        if self._path is None:
            return ""
        self._follow(self._path)
        scheme, _, bearer = (authorization or "").partition(" ")
        given = [key.strip(" \t") for key in (bearer if scheme.lower() == "bearer" else "", api_key or "")]
        if not any(given):
            raise Unauthorized("an API key is required: send the header Authorization: Bearer KEY")
        # Clients send other letters than ASCII's as UTF-8 (curl) or as Latin-1 (Python's).
        given += [key.encode("latin-1").decode("utf-8", "replace") for key in given]
        for digest in map(hash_key, filter(None, given)):
            # A client cannot choose a digest, so the time of the look-up teaches it nothing of another key.
            key = self._by_owner.get(digest[:OWNER_LENGTH])
            if key is not None and hmac.compare_digest(key.digest, digest):
                return key.owner
        raise Unauthorized("this API key is unknown; API_KEYS_FILE on the server lists the valid keys")

    def find(self, owner: str) -> ApiKey | None:
        """Return the key of an owner; None where no keys are required, or it was revoked."""
        return self._by_owner.get(owner)

    def labels(self) -> dict[str, str]:
        """Return the keys' labels by owner."""
        return {owner: key.label for owner, key in self._by_owner.items()}

    def _read(self, path: Path) -> None:
        self._mark = _mark(path)  # before the read, so that a later edit differs
        self._by_owner, self._trouble = {key.owner: key for key in read_api_keys(path)}, ""
        log.info("API_KEYS_FILE: %d keys", len(self._by_owner))

    def _follow(self, path: Path) -> None:
        if _mark(path) == self._mark:
            return
        try:
            self._read(path)
        except KeysUnreadable as error:
            if isinstance(error.__cause__, OSError):
                self._mark = None  # it may be over soon: read again
            if str(error) != self._trouble:
                log.error("%s; the earlier %d keys stay", error, len(self._by_owner))
            self._trouble = str(error)


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
            notes(scope)["owner"] = "" if is_open(path) else self._owner(scope)
        except InvalidRequest as error:
            await error_response(error, scope["path"])(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _owner(self, scope: Scope) -> str:
        return self._keys.owner(header(scope, b"authorization"), header(scope, b"x-api-key"))


def is_open(path: str) -> bool:
    """Whether a path needs no key."""
    return path in OPEN_PATHS or path.startswith(OPEN_PREFIX)


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


def _mark(path: Path) -> object:
    return mark_files(path.parent, [path.name])
