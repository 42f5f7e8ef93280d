"""HTTP as it is spoken: HEAD, HTTP/1.0, upgrades that are declined, clients that shut their write side."""

import json
import socket
from contextlib import closing, suppress

import pytest

from frontdoor.app import make_app
from tests.frontdoor.raw_http import post_bytes, read_to_end, split_answer
from tests.services.frontdoor_service import Service, connect, events

BODY = b'{"prompt": "hi", "max_tokens": 6}'
STREAM = b'{"prompt": "hi", "max_tokens": 6, "stream": true}'
CHAT = b'{"messages": [{"role": "user", "content": "hi"}], "max_tokens": 6, "stream": true}'
CHANGING = {b"date", b"x-request-id", b"request-id", b"transfer-encoding", b"connection"}


def send(service: Service, head: str, body: bytes = b"") -> tuple[bytes, dict[bytes, bytes], bytes]:
    """Send one request as it is written and read until the server closes: status line, headers, body."""
    fields = "Host: localhost\r\nContent-Type: application/json\r\n"
    length = f"Content-Length: {len(body)}\r\n" if body else ""
    with closing(connect(service.url)) as connection:
        connection.sendall(f"{head}\r\n{fields}{length}\r\n".encode() + body)
        return split_answer(read_to_end(connection))


def get_paths(service: Service) -> list[str]:
    """Every path of the route table, with a finished request in the place of the parameter."""
    request_id = service.http.post("/generate", content=BODY, headers={"Content-Type": "application/json"})
    paths = make_app(service.settings).openapi()["paths"]
    known = [path.replace("{request_id}", request_id.json()["id"]) for path in paths]
    found = [path.replace("/ui/{name}", "/ui/page.css").replace("{name}", "tiny") for path in known]
    return [*found, "/nothing", "/requests/x", "/v1/models/other", "/v1/messages", "/openapi.json"]


def test_head_is_get_without_a_body(service: Service) -> None:
    """On every route: the same status and headers, the length of what GET would send, and no byte of it."""
    for path in get_paths(service):
        got, get_headers, body = send(service, f"GET {path} HTTP/1.1\r\nConnection: close")
        status, headers, nothing = send(service, f"HEAD {path} HTTP/1.1\r\nConnection: close")
        assert (status, nothing) == (got, b""), path
        for fields in (headers, get_headers):
            for name in CHANGING:
                fields.pop(name, None)
        if path in ("/livez", "/health", "/metrics", "/"):  # times are in them: the lengths may differ
            assert int(headers.pop(b"content-length")) > 0
            get_headers.pop(b"content-length")
        assert headers == get_headers, path
        assert body, path


def test_head_of_a_stream_ends_at_once(service: Service) -> None:
    """It neither waits for the answer nor cancels it."""
    body = {"prompt": "[hold]", "background": True}
    url = service.http.post("/generate", json=body).json()["status_url"]
    status, headers, body_sent = send(service, f"HEAD {url}/stream HTTP/1.1\r\nConnection: close")
    assert status == b"HTTP/1.1 200 OK"
    assert headers[b"content-type"].startswith(b"text/event-stream")
    assert body_sent == b""
    assert service.http.get(url).json()["state"] in ("waiting", "active")
    assert service.http.delete(url).json()["cancelled"] is True


def test_head_leaves_the_connection_in_order(service: Service) -> None:
    """The next request on it is answered."""
    answer = service.http.head("/v1/models")
    assert (answer.status_code, answer.content) == (200, b"")
    assert service.http.get("/v1/models").json()["data"][0]["id"] == "tiny"
    assert service.http.request("PUT", "/v1/models").headers["allow"] == "GET, HEAD"


@pytest.mark.parametrize(
    ("path", "body"), [("/generate", STREAM), ("/v1/chat/completions", CHAT), ("/v1/completions", STREAM)]
)
@pytest.mark.parametrize("more", ["", "\r\nConnection: keep-alive"])
def test_a_stream_to_an_old_client_has_no_chunk_sizes(
    service: Service, path: str, body: bytes, more: str
) -> None:
    """HTTP/1.0 knows no chunks: the body is what comes until the connection closes."""
    _, headers, answer = send(service, f"POST {path} HTTP/1.0{more}", body)
    assert b"transfer-encoding" not in headers
    assert headers[b"connection"] == b"close"
    lines = [line for line in answer.decode().split("\n") if line]
    assert all(line.startswith(("data: ", "event: ", "id: ", ": ")) for line in lines)
    assert "n1 " in lines[-1] or lines[-1] == "data: [DONE]"


def test_an_old_client_gets_every_other_answer_too(service: Service) -> None:
    """With its length, and closed: routes, errors and HEAD."""
    for path in get_paths(service):
        for method in ("GET", "HEAD"):
            status, headers, body = send(service, f"{method} {path} HTTP/1.0")
            assert b"transfer-encoding" not in headers
            assert headers[b"connection"] == b"close"
            if method == "GET" and b"content-length" in headers:
                assert int(headers[b"content-length"]) == len(body)
            assert status.startswith(b"HTTP/1.")
    answer = send(service, "POST /generate HTTP/1.0", BODY)[2]
    assert json.loads(answer)["finish_reason"] == "length"
    assert events(send(service, "POST /generate HTTP/1.0", STREAM)[2].decode())[-1][0] == "done"


@pytest.mark.parametrize("size", [10_000, 1, 60])
@pytest.mark.parametrize(
    "wish", ["Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAB\r\n",
             "Upgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n"]
)  # fmt: skip
def test_a_wish_for_another_protocol_loses_no_body(service: Service, wish: str, size: int) -> None:
    """Java's HTTP client asks for h2c each time: it is answered in HTTP/1.1, and so is the next one."""
    last = "GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    data = post_bytes("/generate", BODY, wish) + post_bytes("/generate", STREAM, wish) + last.encode()
    with closing(connect(service.url)) as connection:
        for at in range(0, len(data), size):
            connection.sendall(data[at : at + size])
        answer = read_to_end(connection)
    assert answer.count(b"HTTP/1.1 200 OK") == 3
    assert answer.count(b'"finish_reason":"length"') == 2
    assert b'"object":"list"' in answer


def test_a_wish_with_close_still_closes(service: Service) -> None:
    """And CONNECT, which asks for a proxy, is refused."""
    wish = "Connection: close, Upgrade\r\nUpgrade: h2c\r\n"
    with closing(connect(service.url)) as connection:
        connection.sendall(post_bytes("/generate", BODY, wish))
        status, headers, body = split_answer(read_to_end(connection))
    assert (status, headers[b"connection"]) == (b"HTTP/1.1 200 OK", b"close")
    assert json.loads(body)["finish_reason"] == "length"
    status, _, body = send(service, "CONNECT example.org:443 HTTP/1.1")
    assert status.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body)["error"]["code"] == "bad_http"


@pytest.mark.parametrize(
    ("path", "body"), [("/generate", STREAM), ("/v1/completions", STREAM), ("/generate", BODY)]
)
def test_a_client_that_shuts_its_write_side_is_answered(
    service: Service, monkeypatch: pytest.MonkeyPatch, path: str, body: bytes
) -> None:
    """It has said all it has to say and listens, as `nc -N` does, however long the answer takes."""
    monkeypatch.setattr("frontdoor.http.connections.PROBE_SECONDS", 0.01)
    with closing(connect(service.url)) as connection:
        connection.sendall(post_bytes(path, body.replace(b"hi", b"[hold]")))
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while answer.count(b"100 Continue") + answer.count(b"3\r\n:\n\n\r\n") < 3:  # it is probed
            answer += connection.recv(65536)
        service.engine.release()
        answer += read_to_end(connection)
        result = service.spool.read_result(service.engine.claimed[-1].id)
    assert result is not None
    assert result.finish_reason == "length"
    assert answer.count(b"HTTP/1.1 200 OK") == 1
    assert b"connection: close" in answer or b"transfer-encoding: chunked" in answer
    assert b"[DONE]" in answer or b'"finish_reason":"length"' in answer


def test_a_get_of_a_client_that_shuts_its_write_side_is_answered(service: Service) -> None:
    """The common way of scripts: printf | nc."""
    with closing(connect(service.url)) as connection:
        connection.sendall(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n")
        connection.shutdown(socket.SHUT_WR)
        status, _, body = split_answer(read_to_end(connection))
    assert status == b"HTTP/1.1 200 OK"
    assert json.loads(body)["data"][0]["id"] == "tiny"


LARGE = b"x" * 20_000_000


@pytest.mark.parametrize(
    ("path", "content_type", "status"),
    [
        ("/v1/embeddings", "application/json", 404),
        ("/v1/models", "application/json", 405),
        ("/generate", "text/plain", 415),
        ("/generate", "application/json", 413),
        ("/generate", "application/json; over=1", 413),
    ],
)
@pytest.mark.parametrize(
    "more", ["HTTP/1.1\r\nConnection: keep-alive", "HTTP/1.1\r\nConnection: close", "HTTP/1.0"]
)
def test_a_client_that_is_still_sending_sees_its_error(
    service: Service, path: str, content_type: str, status: int, more: str
) -> None:
    """The rest of the body is read and dropped: a reset would come before the answer."""
    head = f"POST {path} {more}\r\nHost: localhost\r\nContent-Type: {content_type}\r\n"
    body = LARGE[: 5_000_000 if "over" in content_type else None]
    with closing(connect(service.url)) as connection:
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        if "keep-alive" in more:  # the connection is in order
            connection.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        answer = read_to_end(connection)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert answer.count(b"HTTP/1.1 ") == (2 if "keep-alive" in more else 1)
    assert (b'"alive"' in answer) == ("keep-alive" in more)


def test_a_body_after_its_answer_is_dropped_within_limits(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither endless ones nor those that never come keep the connection."""
    head = b"POST /nothing HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    monkeypatch.setattr("frontdoor.http.connections.MAX_DROPPED_BYTES", 200_000)
    num_sent = 0
    with closing(connect(service.url)) as connection, suppress(OSError):  # reset or broken pipe
        connection.sendall(head)
        for num_sent in range(10_000):  # noqa: B007
            connection.sendall(chunk)
    assert num_sent < 1000
    monkeypatch.setattr("frontdoor.http.connections.HEADER_TIMEOUT_SECONDS", 0.1)
    with closing(connect(service.url)) as connection:
        connection.sendall(head + chunk)
        assert read_to_end(connection).startswith(b"HTTP/1.1 404 Not Found")


def test_who_waits_for_100_continue_may_send_its_body_or_not(service: Service) -> None:
    """The server asks for a body that it wants; after a refusal it closes the connection."""
    expect = "Expect: 100-continue\r\n"
    with closing(connect(service.url)) as connection:
        head = post_bytes("/generate", BODY, expect)[: -len(BODY)]
        connection.sendall(head)
        assert connection.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(BODY)
        assert read_to_end(connection).startswith(b"HTTP/1.1 200 OK")
    with closing(connect(service.url)) as connection:
        connection.sendall(post_bytes("/nothing", BODY, expect)[: -len(BODY)])
        status, headers, _ = split_answer(read_to_end(connection))
        assert (status, headers[b"connection"]) == (b"HTTP/1.1 404 Not Found", b"close")


def test_garbage_after_an_answer_has_begun_is_no_second_answer(service: Service) -> None:
    """In a body that is dropped, or while a stream runs: the connection just ends."""
    head = b"POST /nothing HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    with closing(connect(service.url)) as connection:
        connection.sendall(head)
        answer = connection.recv(65536)
        connection.sendall(b"no chunk\r\n")
        assert connection.recv(65536) == b""
    assert answer.count(b"HTTP/1.1 ") == 1
    held = STREAM.replace(b"hi", b"[hold]")
    with closing(connect(service.url)) as connection:
        connection.sendall(post_bytes("/generate", held))
        answer = connection.recv(65536)
        connection.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        answer += read_to_end(connection)
    assert answer.count(b"HTTP/1.1 ") == 1
    with closing(connect(service.url)) as connection:  # a body that is none is answered
        connection.sendall(
            post_bytes("/generate", b"", "Transfer-Encoding: chunked\r\n").replace(
                b"Content-Length: 0\r\n", b""
            )
        )
        connection.sendall(b"no chunk\r\n")
        assert read_to_end(connection).startswith(b"HTTP/1.1 400 Bad Request")


def test_a_range_of_a_file(service: Service) -> None:
    """A part, the whole where the header is wrong, and an error in our form where nothing is left."""
    page = service.http.get("/ui/page.css").content
    for asked, status, sent in (
        ("bytes=2-4", 206, page[2:5]),
        ("bytes=x", 200, page),
        ("lines=1-", 200, page),
    ):
        answer = service.http.get("/ui/page.css", headers={"Range": asked})
        assert (answer.status_code, answer.content) == (status, sent)
    answer = service.http.get("/ui/page.css", headers={"Range": "bytes=99999999-"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (416, "range_not_satisfiable")


def test_a_wrong_method_is_answered_with_all_methods_of_the_path(service: Service) -> None:
    """Also where several routes share it."""
    for path, allowed in (
        ("/generate", "POST"),
        ("/v1/models", "GET, HEAD"),
        (f"/requests/{'0' * 32}", "DELETE, GET, HEAD"),
        ("/v1/files", "GET, POST, HEAD"),
    ):
        answer = service.http.put(path)
        assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
