"""What uvicorn's connections answer before any route is asked."""

import json
from contextlib import closing, suppress
from typing import Any

import pytest

from frontdoor.http import connections
from tests.frontdoor.raw_http import post_bytes, read_to_end
from tests.services.frontdoor_service import Service, connect, until

GET = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"
SETTINGS = {"FILE_DESCRIPTOR_SOFT_LIMIT": "64"}
MAX_CONNECTIONS = 64  # the least that server_config allows


def error_of(answer: bytes, status: int) -> dict[str, Any]:
    """Check an answer's head; return its error object."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ".encode()), head
    assert b"x-request-id: " in head.lower()
    assert b"connection: close" in head.lower()
    error: dict[str, Any] = json.loads(body)["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return error


def test_headers_that_dribble_in_are_given_up(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow loris gets a 408 in our shape and loses its connection, on its first request or a later one."""
    monkeypatch.setattr(connections, "HEADER_TIMEOUT_SECONDS", 0.1)
    with closing(connect(service.url)) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: loc")
        assert error_of(read_to_end(connection), 408)["code"] == "headers_too_slow"
    with closing(connect(service.url)) as connection:
        connection.sendall(GET)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
        connection.sendall(b"GET /")
        assert error_of(read_to_end(connection), 408)["code"] == "headers_too_slow"


def test_a_connection_that_says_nothing_is_closed_in_silence(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Browsers keep spare ones: an answer to no question would confuse them."""
    monkeypatch.setattr(connections, "HEADER_TIMEOUT_SECONDS", 0.1)
    with closing(connect(service.url)) as connection:
        assert read_to_end(connection) == b""


def test_a_request_that_takes_long_is_no_slow_header(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time limit is for the headers alone: an answer may take as long as it takes."""
    monkeypatch.setattr(connections, "HEADER_TIMEOUT_SECONDS", 0.05)
    with closing(connect(service.url)) as connection, closing(connect(service.url)) as other:
        connection.sendall(post_bytes("/generate", b'{"prompt": "[hold]"}'))
        assert read_to_end(other) == b""  # a time-out has passed
        service.engine.release()
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_endless_headers_are_cut_off(service: Service) -> None:
    """httptools would keep them all; here 431 comes after 64 KiB."""
    line = b"X-Much: " + b"x" * 8000 + b"\r\n"
    num_sent = 0
    with closing(connect(service.url)) as connection, suppress(OSError):  # reset or broken pipe
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n")
        for num_sent in range(10_000):  # noqa: B007
            connection.sendall(line)
    assert num_sent < 5000
    assert service.http.get("/livez").status_code == 200


def test_headers_at_the_limit_are_answered_with_431(service: Service) -> None:
    """The error has our shape, for a client that stops to listen."""
    with closing(connect(service.url)) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nX-Much: " + b"x" * connections.MAX_HEADER_BYTES)
        assert error_of(read_to_end(connection), 431)["code"] == "headers_too_large"


def test_a_large_body_in_one_piece_with_its_headers_is_no_large_header(service: Service) -> None:
    """Only bytes before the end of the headers count."""
    with closing(connect(service.url)) as connection:
        connection.sendall(post_bytes("/generate", b'{"prompt": "' + b"x" * 100_000 + b'"}'))
        assert b"MAX_PROMPT_LEN_BYTES" in connection.recv(65536)


def test_what_is_no_http_is_a_400(service: Service) -> None:
    """Our shape, not plain text."""
    with closing(connect(service.url)) as connection:
        connection.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        assert error_of(read_to_end(connection), 400)["code"] == "bad_http"


def test_at_the_connection_limit_a_503_has_our_shape(service: Service) -> None:
    """Or that of the path's own API, with Retry-After. Those far beyond it are answered at once and closed,
    so descriptors stay free.
    """
    many = [connect(service.url) for _ in range(MAX_CONNECTIONS)]
    try:
        with closing(connect(service.url)) as connection:
            connection.sendall(GET)
            answer = read_to_end(connection)
            assert error_of(answer, 503)["code"] == "overloaded"
            assert b"retry-after: " in answer.lower()
        anthropic = service.http.post("/v1/messages", json={})
        assert (anthropic.status_code, anthropic.json()["type"]) == (503, "error")
        assert anthropic.json()["error"]["type"] == "overloaded_error"
        many += [connect(service.url) for _ in range(connections.NUM_TURNED_AWAY)]
        with closing(connect(service.url)) as unread:
            assert error_of(read_to_end(unread), 503)["code"] == "overloaded"
    finally:
        for connection in many:
            connection.close()

    def is_served() -> bool:
        with closing(connect(service.url)) as connection:
            connection.sendall(GET)
            return connection.recv(65536).startswith(b"HTTP/1.1 200 ")

    until(is_served)
