"""What our layers read from an ASGI scope and leave in it for the endpoints, in `scope["state"]`:

received_unix       when the request's first bytes came                          (Connection)
request_id          of the HTTP request: what the client sent, or a new one      (Edge)
is_request_id_new   it was made here                                             (Edge)
is_event_stream     its answer is one: a comment fits between two frames         (EventStream)
owner               whose request it is; "" where no keys are asked for          (Gate)
"""

from typing import Any

from starlette.types import Scope


def header(scope: Scope, name: bytes) -> str | None:
    """Return the first value of a header; `name` is in lower case, as ASGI has them."""
    for key, value in scope["headers"]:
        if key == name:
            return str(value, "latin-1")
    return None


def notes(scope: Scope) -> dict[str, Any]:
    """Return what the layers left, to be read and added to."""
    left: dict[str, Any] = scope.setdefault("state", {})
    return left
