"""Server-sent events: how frames are written, and the answer that sends them as they come.

Knows framing only; what stands in the frames is the adapters' business (generate, openai_chat,
openai_completions).
"""

import json
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from frontdoor.http.scope import notes

FIRST_COMMENT_SECONDS = 1.0  # who waits this long wants to know its place
COMMENT_SECONDS = 10.0
# Readers that strip each piece they get (vllm bench serve) take a comment for the beginning of the data that
# follows it: this ends it for them. All others see one empty comment more.
COMMENT_END = b":\n\n"
# Ends a line for str.splitlines, by which some readers split (httpx's iter_lines), but not in JSON.
_LINE_ENDS = str.maketrans({"\x85": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"})


def data_frame(data: str, *, event: str | None = None, event_id: int | None = None) -> bytes:
    """Frame one event; `data` is one line (JSON without line breaks)."""
    head = "" if event is None else f"event: {event}\n"
    tail = "" if event_id is None else f"id: {event_id}\n"
    return f"{head}{tail}data: {data}\n\n".encode()


def comment_frame(text: str) -> bytes:
    """Frame a comment, which every client ignores and every proxy counts as life."""
    return f": {text}\n\n".encode()


def to_json(value: Any) -> str:
    """Write JSON on one line, whatever its reader takes for a line's end."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text if text.isascii() else text.translate(_LINE_ENDS)


class EventStream(Response):
    """Sends frames one by one, as `frames` makes them; it is given the connection's receive channel."""

    media_type = "text/event-stream"

    def __init__(self, frames: Callable[[Receive], AsyncGenerator[bytes, None]]) -> None:
        self.status_code = 200
        self.background = None
        self._frames = frames
        # no-cache and X-Accel-Buffering keep proxies from holding tokens back
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        notes(scope)["is_event_stream"] = True
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with aclosing(self._frames(receive)) as frames:
            async for frame in frames:
                await send({"type": "http.response.body", "body": frame, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
