"""One chat completion over HTTP, as any OpenAI-compatible server streams it, with the time of every text.

A connection opens before its request, so a load can open all of them before its clock starts. Knows no server
by name.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import httptools

PATH = "/v1/chat/completions"
MAX_READ_BYTES = 1 << 16
MAX_ERROR_BYTES = 500


@dataclass(frozen=True)
class Server:
    """The address of a server; `model` is the name to ask for, None for none."""

    host: str
    port: int
    model: str | None = None
    key: str | None = None

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"


@dataclass(frozen=True)
class Ask:
    """One request; `history` has the messages before it."""

    prompt: str
    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    history: tuple[dict[str, str], ...] = ()

    def body(self, model: str | None) -> dict[str, Any]:
        """The request's JSON; without a seed, because mlx_lm.server stops batching at one."""
        return {
            **({"model": model} if model else {}),
            **({"top_p": self.top_p} if self.top_p != 1.0 else {}),
            "messages": [*self.history, {"role": "user", "content": self.prompt}],
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
        }


@dataclass
class Reply:
    """The answer to one ask. Times are seconds since the load's clock started."""

    sent_s: float = 0.0
    sent_unix: float = 0.0
    text_times_s: list[float] = field(default_factory=list)  # one for each chunk with text
    end_s: float = 0.0
    text: str = ""
    finish_reason: str | None = None
    usage: dict[str, Any] = field(default_factory=dict)
    id: str = ""
    error: str | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens of the answer: the server's count, else the chunks with text."""
        return int(self.usage.get("completion_tokens", len(self.text_times_s)))

    @property
    def num_prompt_tokens(self) -> int:
        return int(self.usage.get("prompt_tokens", 0))

    @property
    def num_cached_tokens(self) -> int:
        """Tokens of the prompt that the server reports as cached."""
        return int((self.usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)

    @property
    def ttft_s(self) -> float:
        """From sending to the first text; NaN without one."""
        return self.text_times_s[0] - self.sent_s if self.text_times_s else math.nan

    @property
    def total_s(self) -> float:
        """From sending to the end of the answer."""
        return self.end_s - self.sent_s

    @property
    def gaps_s(self) -> list[float]:
        """The times between chunks with text."""
        return [after - before for before, after in pairwise(self.text_times_s)]


class Connection:
    """One connection for one request."""

    def __init__(self, server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._server, self._reader, self._writer = server, reader, writer
        self._parser = httptools.HttpResponseParser(self)
        self._rest = b""
        self._now_s = 0.0
        self._status = 0
        self._is_over = False
        self._reply = Reply()

    @classmethod
    async def open(cls, server: Server) -> Connection:
        """Connect. Raises OSError."""
        return cls(server, *await asyncio.open_connection(server.host, server.port))

    def close(self) -> None:
        """Abort the connection."""
        self._writer.transport.abort()

    async def ask(self, ask: Ask, reply: Reply, start_s: float) -> None:
        """Send the request and read its answer to the end; a failure becomes the reply's error."""
        self._reply = reply
        reply.sent_unix, reply.sent_s = time.time(), time.perf_counter() - start_s
        try:
            self._writer.write(make_request(self._server, ask.body(self._server.model)))
            while not self._is_over and (data := await self._reader.read(MAX_READ_BYTES)):
                self._now_s = time.perf_counter() - start_s
                self._parser.feed_data(data)
        except (OSError, httptools.HttpParserError, ValueError) as error:
            reply.error = reply.error or f"the answer broke off: {error}"
        finally:
            self.close()
        if self._status not in (0, 200):
            reply.error = f"status {self._status}: {read_error(self._rest)}"
        elif not (reply.error or (reply.end_s and reply.text_times_s)):
            reply.error = "the answer ended without text, or without its last event"

    def on_headers_complete(self) -> None:
        self._status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        if self._status != 200:
            self._rest = (self._rest + body)[:MAX_ERROR_BYTES]
            return
        *lines, self._rest = (self._rest + body).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                self._take(line.removeprefix(b"data:").strip())

    def on_message_complete(self) -> None:
        self._is_over = True

    def _take(self, data: bytes) -> None:
        reply = self._reply
        if data == b"[DONE]":
            reply.end_s = self._now_s
            return
        chunk = json.loads(data)
        if "error" in chunk:
            reply.error = str(chunk["error"])
            return
        reply.id = chunk.get("id", reply.id)
        reply.usage = chunk.get("usage") or reply.usage
        for choice in chunk.get("choices", ()):
            if text := choice.get("delta", {}).get("content"):
                reply.text += text
                reply.text_times_s.append(self._now_s)
            reply.finish_reason = choice.get("finish_reason") or reply.finish_reason


def make_request(server: Server, body: Mapping[str, Any]) -> bytes:
    """The bytes of a POST whose connection ends with its answer."""
    content = json.dumps(body).encode()
    fields = {
        "host": f"{server.host}:{server.port}",
        "accept": "text/event-stream",
        "connection": "close",
        "content-type": "application/json",
        "content-length": str(len(content)),
        **({"authorization": f"Bearer {server.key}"} if server.key else {}),
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"POST {PATH} HTTP/1.1\r\n{head}\r\n".encode() + content


def read_error(body: bytes) -> str:
    """The message in an error's body, or the body."""
    try:
        error = json.loads(body)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        return body.decode("utf-8", errors="replace")
