"""A server without a model for the load tool, as ours (chunked) or as mlx_lm.server (HTTP/1.0, an answer that
ends with its connection).

It streams as many tokens as are asked for. A prompt that begins with a trouble's name makes that trouble:
`refuse` is a 400, `break` ends after one token, `error` is an error event, `hang` never ends.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Crowd:
    """Counts how many answers are under way at once."""

    def __init__(self) -> None:
        self.num_now = self.num_most = 0
        self._lock = threading.Lock()

    def enter(self) -> None:
        with self._lock:
            self.num_now += 1
            self.num_most = max(self.num_most, self.num_now)

    def leave(self) -> None:
        with self._lock:
            self.num_now -= 1


def events(body: dict[str, Any]) -> Iterator[str]:
    """What a chat completion sends: a role in the first delta, a comment, usage before [DONE]."""
    prompt = body["messages"][0]["content"]
    yield ": keepalive\n\n"
    for index in range(body["max_tokens"]):
        choice = {"index": 0, "finish_reason": None, "delta": {"content": f"é{index} "}}
        yield f"data: {json.dumps({'id': 'chatcmpl-1', 'choices': [choice]}, ensure_ascii=False)}\n\n"
        if prompt.startswith("break"):
            return
        if prompt.startswith("error"):
            yield 'data: {"error": {"message": "lost"}}\n\n'
            return
    if prompt.startswith("hang"):
        return
    last = {"index": 0, "finish_reason": "length", "delta": {}}
    yield f"data: {json.dumps({'id': 'chatcmpl-1', 'choices': [last]})}\n\n"
    usage = {"prompt_tokens": 7, "completion_tokens": body["max_tokens"]}
    usage["prompt_tokens_details"] = {"cached_tokens": 3}
    yield f"data: {json.dumps({'id': 'chatcmpl-1', 'choices': [], 'usage': usage})}\n\n"
    yield "data: [DONE]\n\n"


class FakeServer(ThreadingHTTPServer):
    """One server; its handlers share what a test wants to know."""

    def __init__(self, crowd: Crowd, *, is_chunked: bool) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.crowd, self.is_chunked = crowd, is_chunked
        self.stopping = threading.Event()


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: FakeServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.close_connection = True
        with contextlib.suppress(OSError):  # a client that broke off
            if body["messages"][0]["content"].startswith("refuse"):
                self._send_error()
            else:
                self._send_stream(body)

    def _send_error(self) -> None:
        content = b'{"error": {"message": "not this"}}'
        self.send_response(400)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _send_stream(self, body: dict[str, Any]) -> None:
        self.protocol_version = "HTTP/1.1" if self.server.is_chunked else "HTTP/1.0"
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        if self.server.is_chunked:
            self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        *most, last = events(body)
        self.server.crowd.enter()
        try:
            for event in most:
                self._send(event.encode())
                time.sleep(0.001)
        finally:
            self.server.crowd.leave()  # before the client sees the end and asks again
        self._send(last.encode())
        if body["messages"][0]["content"].startswith("hang"):
            self.server.stopping.wait(10)
        if self.server.is_chunked:
            self.wfile.write(b"0\r\n\r\n")

    def _send(self, data: bytes) -> None:
        """Cut in the middle of an event, and of a character."""
        for part in (data[: len(data) // 2], data[len(data) // 2 :]):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part) if self.server.is_chunked else part)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


@contextmanager
def serve(crowd: Crowd, *, is_chunked: bool = True) -> Iterator[int]:
    """Serve; gives the port."""
    server = FakeServer(crowd, is_chunked=is_chunked)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.stopping.set()
        server.shutdown()
        thread.join()
        server.server_close()
