"""Rows 25 and 31 of the faults: impossible bodies, and callers without permission."""

import json
import time
from typing import Any

import pytest
from starlette.routing import Route

from frontdoor.app import ROUTE_MODULES, make_app
from tests.services.frontdoor_service import Service, routes, until

MAX_SECONDS = 1.0  # some milliseconds here; what grew with the input would take many
KEYS = "mine\ntheirs\n"
KEY = {"Authorization": "Bearer mine"}
POSTS: dict[str, dict[str, Any]] = {
    "/generate": {"prompt": "hi"},
    "/v1/completions": {"prompt": "hi"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
    "/v1/responses": {"input": "hi"},
}
JSON, FORM = "application/json", "application/x-www-form-urlencoded"

# Fields of a body, or its bytes; what it says that it is; the status.
BODIES: list[tuple[dict[str, Any] | bytes, str, int]] = [
    ({"max_tokens": 10**20}, JSON, 400),
    ({"temperature": float("nan")}, JSON, 400),
    ({"top_p": float("inf")}, JSON, 400),
    ({"n": 10**9}, JSON, 400),
    ({"stop": ["x"] * 10**5}, JSON, 400),
    ({"stop": ["x" * 10**5]}, JSON, 400),
    ({"seed": 10**400}, JSON, 400),
    ({"prompt": "x" * 900_000}, JSON, 400),
    ({"prompt": "x" * 3_000_000}, JSON, 413),
    ({"metadata": {"a" * 100_000: 1}, "unheard_of": 1}, JSON, 400),
    ({f"field{number}": number for number in range(20_000)}, JSON, 400),
    (b'{"prompt": "\xff\xfe"}', JSON, 400),
    (b"\xff" * 1000, JSON, 400),
    (b"[" * 500_000, JSON, 400),
    (b"prompt=hi", FORM, 415),
    (b'{"prompt": "hi"}', "text/plain", 415),
]


@pytest.mark.parametrize(("body", "content_type", "status"), BODIES, ids=range(len(BODIES)))
@pytest.mark.parametrize("path", POSTS)
def test_a_body_that_cannot_be_is_refused_at_once(
    service: Service, path: str, body: dict[str, Any] | bytes, content_type: str, status: int
) -> None:
    """Row 25: before it is accepted, in a time that does not grow, with an OpenAI-shaped error."""
    if isinstance(body, dict):
        wanted = {**POSTS[path], **body}
        if "messages" in POSTS[path] and "prompt" in body:
            wanted = {"messages": [{"role": "user", "content": body["prompt"]}]}
        body = json.dumps(wanted).encode()
    started = time.monotonic()
    answer = service.http.post(path, content=body, headers={**KEY, "Content-Type": content_type})
    assert time.monotonic() - started < MAX_SECONDS
    assert answer.status_code == status, answer.text
    assert answer.json()["error"].keys() == {"message", "type", "param", "code"}
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert len(answer.content) < 2000
    assert service.spool.depth().num_waiting + service.spool.depth().num_active == 0


def test_the_table_has_every_route_that_is_served(service: Service) -> None:
    """Row 31 holds for what is tested only: nothing is routed that the table does not show."""
    app = make_app(service.settings)
    served = {route.path for route in app.routes if isinstance(route, Route)}
    served |= {
        route.path for module in ROUTE_MODULES for route in module.router.routes if isinstance(route, Route)
    }
    assert "/generate" in served
    assert {path.replace(":path}", "}") for path in served} <= {*app.openapi()["paths"], "/openapi.json"}


def test_ids_that_lead_elsewhere_and_other_peoples_ids_are_not_found(service: Service) -> None:
    """Row 31: no path of a client's reaches the file system; another key's request does not exist."""
    foreign = service.http.post(
        "/generate", json={"prompt": "hi"}, headers={"Authorization": "Bearer theirs"}
    )
    until(lambda: service.spool.state(foreign.json()["id"]) == "done")
    odd = ["..%2f..%2fetc%2fpasswd", "%2e%2e", "../lock", "a" * 5000, "%00", "0" * 31 + "%0a"]
    for request_id in [*odd, foreign.json()["id"]]:
        for method, path in routes(service, request_id):
            if not path.startswith("/requests/"):
                continue
            answer = service.http.request(method, path, headers=KEY)
            assert answer.status_code == 404, (method, path)
            assert answer.json()["error"]["code"] == "not_found"
