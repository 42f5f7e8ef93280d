"""Servers without a model for the load tool: one like ours (ASGI, chunked), one like mlx_lm.server (HTTP/1.0,
an answer that ends with its connection).

Both stream as many tokens as are asked for. A prompt that begins with a trouble's name makes that trouble:
`refuse` is a 400, `break` ends after one token, `error` is an error event, `hang` never ends.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

START_SECONDS = 10.0


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


def native_events(body: dict[str, Any]) -> Iterator[str]:
    """What /generate sends, event by event."""
    prompt = body["messages"][0]["content"]
    yield ": accepted\n\n"
    for index in range(body["max_tokens"]):
        data = {"index": index, "token_id": 100 + index, "text": f"w{index} "}
        yield f"event: token\nid: {index}\ndata: {json.dumps(data)}\n\n"
        if prompt.startswith("break"):
            return
        if prompt.startswith("error"):
            yield 'event: error\ndata: {"error": {"message": "lost"}}\n\n'
            return
    text = "".join(f"w{index} " for index in range(body["max_tokens"]))
    usage = {"prompt_tokens": 7, "completion_tokens": body["max_tokens"], "cached_tokens": 3}
    done = {"id": "0" * 32, "text": text, "finish_reason": "length", "usage": usage, "performance": {}}
    yield f"event: done\ndata: {json.dumps(done)}\n\n"


def peer_events(body: dict[str, Any]) -> Iterator[str]:
    """What mlx_lm.server 0.32.2 sends: a role in every delta, a keepalive comment, usage before [DONE]."""
    yield ": keepalive 1/7\n\n"
    for index in range(body["max_tokens"]):
        delta = {"role": "assistant", "content": f"w{index} "}
        choice = {"index": 0, "finish_reason": None, "delta": delta}
        yield f"data: {json.dumps({'id': 'chatcmpl-1', 'choices': [choice]})}\n\n"
        if body["messages"][0]["content"].startswith("break"):
            return
    last = {"index": 0, "finish_reason": "length", "delta": {"role": "assistant"}}
    yield f"data: {json.dumps({'id': 'chatcmpl-1', 'choices': [last]})}\n\n"
    usage = {"prompt_tokens": 7, "completion_tokens": body["max_tokens"]}
    usage["prompt_tokens_details"] = {"cached_tokens": 3}
    yield f"data: {json.dumps({'id': 'chatcmpl-1', 'choices': [], 'usage': usage})}\n\n"
    yield "data: [DONE]\n\n"


def make_app(crowd: Crowd) -> FastAPI:
    """The fake of ours."""
    app = FastAPI()

    @app.post("/generate")
    async def generate(request: Request) -> Response:
        body = await request.json()
        prompt = body["messages"][0]["content"]
        if prompt.startswith("refuse"):
            return JSONResponse({"error": {"message": "not this"}}, status_code=400)

        async def stream() -> AsyncIterator[str]:
            crowd.enter()
            try:
                for event in native_events(body):
                    yield event
                    await asyncio.sleep(0.001)
                if prompt.startswith("hang"):
                    await asyncio.Event().wait()
            finally:
                crowd.leave()

        return StreamingResponse(stream(), media_type="text/event-stream")

    return app


@contextmanager
def like_ours(crowd: Crowd) -> Iterator[int]:
    """Serve the fake of ours; gives its port."""
    server = uvicorn.Server(uvicorn.Config(make_app(crowd), port=0, log_config=None, ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    deadline = time.monotonic() + START_SECONDS
    while not server.started and thread.is_alive() and time.monotonic() < deadline:
        time.sleep(0.005)  # uvicorn has no other word for it from another thread
    assert server.started
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = server.force_exit = True
        thread.join(START_SECONDS)


@contextmanager
def like_the_peer(crowd: Crowd) -> Iterator[int]:
    """Serve the fake of mlx_lm.server; gives its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            crowd.enter()
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.end_headers()
            for event in peer_events(body):
                self.wfile.write(event.encode())
            crowd.leave()

        def log_message(self, format: str, *args: object) -> None:
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join(START_SECONDS)
        server.server_close()
