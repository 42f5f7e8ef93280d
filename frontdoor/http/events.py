"""Streamed answers: writes frames of server-sent events, and sends the frames of any form one by one.

Knows framing only; the routes write the frames' content.
"""

import json
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from frontdoor.http.scope import notes

EVENT_STREAM = "text/event-stream"
FIRST_COMMENT_SECONDS = 1.0  # then a comment shows the place in the queue
COMMENT_SECONDS = 10.0
# Readers that strip each piece (vllm bench serve) read a comment as the beginning of the following data; this
# ends the comment for them. Other readers see one more empty comment.
COMMENT_END = b":\n\n"
# Some readers split at these characters (httpx's iter_lines); JSON allows them in strings.
_LINE_ENDS = str.maketrans({"\x85": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"})


def data_frame(data: str, *, event: str | None = None, event_id: int | None = None) -> bytes:
    """Frame one event; `data` is one line (JSON without line breaks)."""
    head = "" if event is None else f"event: {event}\n"
    tail = "" if event_id is None else f"id: {event_id}\n"
    return f"{head}{tail}data: {data}\n\n".encode()


def comment_frame(text: str) -> bytes:
    """Frame a comment, which clients ignore; it keeps proxies from closing the connection."""
    return f": {text}\n\n".encode()


def to_json(value: Any) -> str:
    """Write JSON on one line, for every reader's idea of a line."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text if text.isascii() else text.translate(_LINE_ENDS)


class EventStream(Response):
    """Sends frames one by one; `frames` makes them from the connection's receive channel."""

    def __init__(
        self, frames: Callable[[Receive], AsyncGenerator[bytes, None]], media_type: str = EVENT_STREAM
    ) -> None:
        self.status_code, self.media_type = 200, media_type
        self.background = None
        self._frames = frames
        # no-cache and X-Accel-Buffering stop proxies from buffering tokens
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        notes(scope)["is_event_stream"] = self.media_type == EVENT_STREAM
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with aclosing(self._frames(receive)) as frames:
            async for frame in frames:
                await send({"type": "http.response.body", "body": frame, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
