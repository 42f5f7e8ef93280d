"""Rewrites each path to one canonical form, so that the host check, the API keys and the routes see the same.

    //v1//models/                  /v1/models      clients that join a base URL and a path
    /v1/v1/models                  /v1/models      a base URL with /v1, and a client that adds it
    /chat/completions, /models/a   /v1/…           a base URL without /v1, and a client that expects it

No redirects: a client that follows one does not send its body again. `..` is an ordinary name.
"""

import functools
from collections.abc import Iterable
from urllib.parse import unquote

from starlette.types import Scope


def with_canonical_path(scope: Scope, v1_names: frozenset[str]) -> Scope:
    """Return the scope, or a copy with the canonical path."""
    raw = scope.get("raw_path")
    given = scope["path"] if raw is None else str(raw, "latin-1")
    path = canonical_path(given, v1_names)
    return scope if path == given else {**scope, "path": unquote(path), "raw_path": path.encode("latin-1")}


@functools.lru_cache(maxsize=256)
def canonical_path(path: str, v1_names: frozenset[str]) -> str:
    """Return the canonical form of a percent-encoded path; `v1_names` are the first names behind /v1/."""
    names = [name for name in path.split("/") if name]
    while names[:2] == ["v1", "v1"]:
        del names[0]
    if names and names[0] in v1_names:
        names.insert(0, "v1")
    return "/" + "/".join(names)


def names_behind_v1(paths: Iterable[str]) -> frozenset[str]:
    """Return the first names behind /v1/ in a route table; a route without /v1 keeps its own name."""
    split = [path.strip("/").split("/") for path in paths]
    own = {names[0] for names in split if names[0] != "v1"}
    return frozenset(names[1] for names in split if names[0] == "v1" and len(names) > 1) - own
