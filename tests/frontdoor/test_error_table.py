"""Every error on every route: its status, the form of the path's API, and the headers of the status.

The routes come from the description of the app, so a new one takes part at once; one that reads a body needs
an entry in BODIES.
"""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import jsonschema
import pytest

from frontdoor.app import make_app
from frontdoor.http.auth import is_open
from frontdoor.http.dialects import ERROR_SCHEMAS, error_schema
from frontdoor.routes.ollama import REFUSED
from spool.fsio import DiskSpace
from tests.frontdoor.raw_http import post_bytes, read_to_end, split_answer
from tests.services.frontdoor_service import (
    Service,
    connect,
    routes,
    running_service,
)

USER = [{"role": "user", "content": "hi"}]
BODIES: dict[str, dict[str, Any]] = {
    "/generate": {"prompt": "hi"},
    "/v1/chat/completions": {"messages": USER},
    "/v1/completions": {"prompt": "hi"},
    "/v1/responses": {"input": "hi"},
    "/v1/messages": {"model": "tiny", "max_tokens": 6, "messages": USER},
    "/v1/messages/count_tokens": {"model": "tiny", "messages": USER},
    "/api/chat": {"model": "tiny", "messages": USER},
    "/api/generate": {"model": "tiny", "prompt": "hi"},
    "/api/show": {"model": "tiny"},
    "/tokenize": {"prompt": "hi"},
    "/detokenize": {"tokens": [5]},
    "/v1/batches": {
        "input_file_id": "file-1",
        "endpoint": "/v1/completions",
        "completion_window": "24h",
    },
}
ACCEPTING = (*(path for path in BODIES if "prompt" in BODIES[path] and path != "/tokenize"),
             "/v1/chat/completions", "/v1/responses", "/v1/messages", "/api/chat")  # fmt: skip
HEADERS = {
    401: ("www-authenticate", "Bearer"), 408: ("x-should-retry", "false"), 409: ("x-should-retry", "false"),
    429: ("retry-after", None), 503: ("retry-after", None), 504: ("x-should-retry", "false"),
    507: ("retry-after", None),
}  # fmt: skip
CODES = {
    401: "invalid_api_key", 403: "forbidden_origin", 405: "method_not_allowed", 409: "idempotency_conflict",
    410: "cancelled", 413: "body_too_large", 415: "unsupported_media_type", 429: "rate_limit_exceeded",
    431: "headers_too_large", 504: "timeout", 507: "disk_full",
}  # fmt: skip
KEYS = "mine\nlimited requests_per_minute=1\n"
KEY = {"Authorization": "Bearer mine"}
SETTINGS = {"MAX_BODY_BYTES": "2000", "CORS_ORIGINS": "https://friend.example"}
JSON = {**KEY, "Content-Type": "application/json"}
METHODS = ("GET", "POST", "DELETE")


@pytest.fixture(scope="module")
def description(shared_service: Service) -> dict[str, Any]:
    described: dict[str, Any] = make_app(shared_service.settings).openapi()
    return described


def check(status: int, where: str, answer: httpx2.Response) -> str:
    """Check an error of a path; return its message."""
    assert answer.status_code == status, (where, answer.text)
    return check_parts(status, where, answer.headers, answer.content)


def check_parts(status: int, path: str, headers: Any, content: bytes) -> str:
    said = json.loads(content)
    jsonschema.validate(said, ERROR_SCHEMAS[error_schema(path)])
    assert said.keys() <= {"error", "type"}, path
    assert headers["content-type"] == "application/json"
    assert headers["x-request-id"]
    name, value = HEADERS.get(status, ("x-request-id", None))
    assert headers[name] and value in (None, headers[name]), (path, status, headers)
    error = said["error"]
    if error_schema(path) == "OpenAIError":
        assert error["code"] == CODES.get(status, error["code"]), path
    return str(error if isinstance(error, str) else error["message"])


def post(service: Service, path: str, **more: Any) -> httpx2.Response:
    return service.http.post(path, json={**BODIES[path], **more}, headers=KEY)


def asking(path: str, word: str, **more: Any) -> dict[str, Any]:
    """A body whose prompt is one word."""
    fields = {"prompt": word, "input": word, "messages": [{"role": "user", "content": word}]}
    return {**BODIES[path], **{name: fields[name] for name in fields if name in BODIES[path]}, **more}


def test_every_route_with_a_body_is_in_the_table(description: dict[str, Any]) -> None:
    """So that no new one goes untested; files come as forms."""
    found = {path for path, of in description["paths"].items() if "requestBody" in of.get("post", {})}
    assert found == {*BODIES, "/v1/files"}
    accepts = [path for path in found if "504" in description["paths"][path]["post"]["responses"]]
    assert sorted(accepts) == sorted(ACCEPTING)


def test_before_the_route(service: Service, description: dict[str, Any]) -> None:
    """Host, origin, key and method, whatever the route does."""
    ask = service.http.request
    for method, path in routes(service):
        check(400, path, ask(method, path, headers={**KEY, "Host": "evil.com"}))
        check(403, path, ask(method, path, headers={**KEY, "Origin": "https://evil.com"}))
        check(405, path, ask("PUT", path, headers=KEY))
        for headers in ({}, {"X-Api-Key": "wrong"}, {"Authorization": "Basic mine"}):
            if not is_open(path):
                check(401, path, ask(method, path, headers=headers))


def test_ids_and_names_that_do_not_exist(service: Service, description: dict[str, Any]) -> None:
    """404, on every path with a parameter."""
    for path, operations in description["paths"].items():
        for method in operations:
            if "{" in path and path not in REFUSED and method != "head":
                given = path.replace("{", "").replace("}", "")
                check(404, path, service.http.request(method, given, headers=KEY))
    for path in REFUSED:
        method = next(iter(description["paths"][path]))
        check(501, path, service.http.request(method, path, headers=KEY))


@pytest.mark.parametrize("path", [*BODIES, "/v1/files"])
def test_bodies(service: Service, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not JSON, no object, an unknown field, another model, another type, too large, too slow."""
    ask = service.http.post
    check(415, path, ask(path, content=b"{}", headers={**KEY, "Content-Type": "text/plain"}))
    if path in BODIES:
        for content in (b"", b"{", b"[]", b"\xff", b'{"unheard_of": 1}', b"[" * 1500):
            check(400, path, ask(path, content=content, headers=JSON))
        assert "unheard_of" in check(400, path, post(service, path, unheard_of=1))
        check(413, path, ask(path, content=b"x" * 3000, headers=JSON))
        check(404, path, post(service, path, **({} if path == "/v1/batches" else {"model": "another"})))
    for module in ("bodies", "multipart"):
        monkeypatch.setattr(f"frontdoor.http.{module}.BODY_TIMEOUT_SECONDS", 0.02)
    sent = post_bytes(path, b"{ }" if path in BODIES else b"--x", "Authorization: Bearer mine\r\n")
    if path not in BODIES:
        sent = sent.replace(b"application/json", b"multipart/form-data; boundary=x")
    check_raw(service, 408, path, sent[:-2])


def check_raw(service: Service, status: int, path: str, sent: bytes) -> None:
    """Check the error that a connection gets before it is closed."""
    with connect(service.url) as connection:
        connection.sendall(sent)
        line, headers, body = split_answer(read_to_end(connection))
    assert line.split()[1] == str(status).encode(), (path, line, body)
    check_parts(status, path, {str(k, "latin-1"): str(v, "latin-1") for k, v in headers.items()}, body)


def test_before_the_headers_are_read(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection knows the path as soon as the first line is there, also without /v1."""
    paths = {path for _, path in routes(service)}
    paths |= {path.removeprefix("/v1") for path in paths}
    for path in paths:
        head = f"POST /{path} HTTP/1.1\r\nHost: localhost\r\n".encode()
        check_raw(service, 431, path, head + b"X: " + b"x" * 66_000)
        check_raw(service, 400, path, head + b"Content-Length: x\r\n\r\n")
    monkeypatch.setattr("frontdoor.http.connections.HEADER_TIMEOUT_SECONDS", 0.01)
    for path in paths:
        check_raw(service, 408, path, f"POST {path} HTTP/1.1\r\nHost: local".encode())
    monkeypatch.setattr("frontdoor.http.connections.Connection._is_over_limit", lambda _, more: not more)
    for path in paths:
        check_raw(service, 503, path, f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())


def test_a_crash(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """500 without a word of ours."""

    def crash(*_: object) -> None:
        raise RuntimeError("a secret of ours")

    monkeypatch.setattr("frontdoor.http.bodies.parse_json", crash)
    for path in BODIES:
        assert "secret" not in check(500, path, service.http.post(path, content=b"{}", headers=JSON))


@pytest.mark.parametrize("path", ACCEPTING)
def test_what_accepting_refuses(service: Service, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key's limit, a key of another body, a full disk, a ring that was given up."""
    limited = {"Authorization": "Bearer limited"}
    service.http.post(path, json=BODIES[path], headers=limited)
    check(429, path, service.http.post(path, json=BODIES[path], headers=limited))
    retried = {**KEY, "Idempotency-Key": f"of {path}".replace(" ", "-")}
    assert service.http.post(path, json=BODIES[path], headers=retried).status_code == 200
    check(409, path, service.http.post(path, json=asking(path, "other"), headers=retried))
    with monkeypatch.context() as full:
        space = DiskSpace(num_free_bytes=0, num_free_files=None)
        full.setattr("spool.fsio.FileSystem.disk_space", lambda *_: space)
        check(507, path, post(service, path))
    failed = json.dumps({"state": "failed", "reason": "no ring"})
    (service.settings.run_dir / "supervisor.json").write_text(failed)
    assert check(503, path, post(service, path)) == "the ring is down: no ring"


@pytest.mark.parametrize("path", ACCEPTING)
def test_what_fails_later(service: Service, path: str) -> None:
    """Before the answer with a status; in a stream as its last event."""
    check(500, path, service.http.post(path, json=asking(path, "[fail]", stream=False), headers=KEY))
    check(400, path, service.http.post(path, json=asking(path, "[too long]", stream=False), headers=KEY))
    answer = service.http.post(path, json=asking(path, "[fail]", stream=True), headers=KEY)
    assert answer.status_code == 200
    last = json.loads(answer.text.strip().splitlines()[-1].removeprefix("data: "))
    if path == "/v1/responses":
        assert (last["type"], last["response"]["error"]["message"]) == ("response.failed", "it went wrong")
    else:
        jsonschema.validate(last, ERROR_SCHEMAS[error_schema(path)])


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with a full queue, whose time for an answer is short."""
    folder: Path = tmp_path_factory.mktemp("busy")
    with running_service(
        folder, {"MAX_QUEUE_DEPTH": str(len(ACCEPTING)), "REQUEST_TIMEOUT": "1"}, max_open=0
    ) as service:
        yield service


def test_a_time_out_a_full_queue_and_a_cancelled_request(busy: Service) -> None:
    """All routes wait at once for answers that do not come."""

    def ask(path: str) -> httpx2.Response:
        key = {"Idempotency-Key": path}  # the retry waits for the same request
        return busy.http.post(path, json=asking(path, "x", stream=False), headers=key)

    with ThreadPoolExecutor(len(ACCEPTING)) as threads:
        timed_out = list(threads.map(ask, ACCEPTING))
        for path, answer in zip(ACCEPTING, timed_out, strict=True):
            assert "REQUEST_TIMEOUT" in check(504, path, answer)
            check(429, path, busy.http.post(path, json=BODIES[path]))
        retried = [threads.submit(ask, path) for path in ACCEPTING]
        for answer in timed_out:
            assert busy.http.delete(answer.headers["location"]).json()["cancelled"]
        for path, waiting in zip(ACCEPTING, retried, strict=True):
            if path == "/generate":  # its answer has a finish reason for it
                assert waiting.result().json()["finish_reason"] == "cancelled"
            else:
                check(410, path, waiting.result())
