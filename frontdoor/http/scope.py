"""The notes that the layers leave in an ASGI scope for the endpoints, in `scope["state"]`:

received_unix       arrival of the request's first bytes                         (Connection)
request_id          of the HTTP request: the client's, or a new one              (Edge)
is_request_id_new   whether the server made it                                   (Edge)
is_event_stream     whether a comment may be sent between two frames             (EventStream)
owner               the owner of the request; "" where no keys are required      (Gate)
headers             more headers of the answer: Edge adds them                   (the routes)
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
    """Return the notes, to read and to extend."""
    left: dict[str, Any] = scope.setdefault("state", {})
    return left
