"""Errors on the paths of other APIs: always in that API's own shape."""

from typing import Any

import pytest

from frontdoor.http.dialects import error_body
from frontdoor.http.errors import GenerationTimeout, RingDown, error_response, headers_of
from spool import IdempotencyConflict
from tests.services.frontdoor_service import Service

ANTHROPIC = ("/v1/messages/x", "/v1/messages/batches", "/v1/messages/batches/x")
OPENAI = ("/v1/responses/resp_1", "/v1/embeddings", "/nothing", "/apis", "/v1/messagesx")
OLLAMA = ("/api", "/api/nothing", "/api/chat/completions")
KEYS = "mine\n"
KEY = {"Authorization": "Bearer mine"}


def check_anthropic(body: dict[str, Any], kind: str) -> str:
    assert body.keys() == {"type", "error"}
    assert body["type"] == "error"
    assert body["error"].keys() == {"type", "message"}
    assert body["error"]["type"] == kind
    return str(body["error"]["message"])


def check_shape(path: str, body: dict[str, Any], kind: str) -> str:
    """Check the shape that belongs to a path; return the sentence."""
    if path in ANTHROPIC:
        return check_anthropic(body, kind)
    if path in OLLAMA:
        assert list(body) == ["error"]
        return str(body["error"])
    assert body["error"].keys() == {"message", "type", "param", "code"}
    return str(body["error"]["message"])


@pytest.mark.parametrize("path", [*ANTHROPIC, *OPENAI, *OLLAMA])
@pytest.mark.parametrize(
    ("headers", "status", "kind"),
    [
        (KEY, 404, "not_found_error"),
        ({"X-Api-Key": "mine"}, 404, "not_found_error"),
        ({"X-Api-Key": "mine", "Authorization": "Bearer theirs"}, 404, "not_found_error"),
        ({}, 401, "authentication_error"),
        ({"X-Api-Key": "theirs"}, 401, "authentication_error"),
        ({**KEY, "Host": "evil.com"}, 400, "invalid_request_error"),
        ({**KEY, "Origin": "https://evil.com"}, 403, "permission_error"),
    ],
)
def test_every_refusal_has_the_shape_of_its_path(
    service: Service, path: str, headers: dict[str, str], status: int, kind: str
) -> None:
    """Whatever the method: keys, hosts, origins, and a path that is not there."""
    for method in ("GET", "POST", "DELETE"):
        for query in ("", "?beta=true"):
            answer = service.http.request(method, path + query, headers=headers, content=b"{}")
            assert answer.status_code == status, (method, path)
            assert check_shape(path, answer.json(), kind)


TYPES = {
    "invalid_request_error": (400, 405, 409, 415),
    "authentication_error": (401,),
    "permission_error": (403,),
    "not_found_error": (404,),
    "request_too_large": (413,),
    "rate_limit_error": (429,),
    "api_error": (500, 502),
    "overloaded_error": (503, 507),
    "timeout_error": (504,),
}


@pytest.mark.parametrize(("status", "kind"), [(status, kind) for kind in TYPES for status in TYPES[kind]])
def test_anthropics_types_follow_the_status(status: int, kind: str) -> None:
    """Its clients distinguish errors by status and type."""
    said = {"error": {"message": "no", "type": "x", "param": None, "code": "y"}}
    for path in ("/v1/messages", "/messages/count_tokens"):
        assert check_anthropic(dict(error_body(path, status, said)), kind) == "no"
    assert error_body("/api/chat", status, said) == {"error": "no"}
    assert error_body("/v1/chat/completions", status, said) == said


def test_headers_of_an_error_stay(service: Service) -> None:
    """Retry-After and its like are the same in every dialect."""
    errors = [RingDown("x"), IdempotencyConflict("x"), GenerationTimeout("a" * 32, 1.0)]
    for path in (*ANTHROPIC, *OLLAMA, "/generate"):
        for error in errors:
            assert {name.lower(): value for name, value in headers_of(error).items()}.items() <= dict(
                error_response(error, path).headers
            ).items()
