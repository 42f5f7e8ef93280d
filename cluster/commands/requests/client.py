"""A client of the front door: HTTP, and server-sent events as they come.

Standard library only. Knows /generate, and nothing of how it is answered.
"""

from __future__ import annotations

import http.client
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cluster.errors import ClusterError
from cluster.ports import host_to_dial
from config import Settings
from config.api_keys import KeysUnreadable, read_api_keys

# The front door itself ends a request that takes too long, a little earlier.
EXTRA_LIMIT_S = 10.0


@dataclass(frozen=True)
class Answer:
    """One streamed answer: its `done` event, and the times of its tokens."""

    result: dict[str, Any]
    num_events: int
    ttft_s: float
    last_s: float

    @property
    def num_tokens(self) -> int:
        """Tokens of the answer."""
        return int(self.result.get("usage", {}).get("completion_tokens", self.num_events))

    @property
    def tokens_per_s(self) -> float:
        """Rate after the first token; 0 with only one."""
        decode_s = self.last_s - self.ttft_s
        return (self.num_tokens - 1) / decode_s if decode_s > 0 else 0.0


def ask(
    settings: Settings, address: tuple[str, int], body: Mapping[str, Any], on_text: Callable[[str], None]
) -> Answer:
    """Post to /generate with `stream` and pass on the text as it comes.

    Raises:
        ClusterError: the front door's error, or it cannot be reached.
    """
    started_at = time.monotonic()
    num_events, ttft_s, last_s = 0, 0.0, 0.0
    for event, data in stream(settings, address, body):
        if event == "token":
            last_s = time.monotonic() - started_at
            ttft_s = ttft_s or last_s
            num_events += 1
            on_text(str(data.get("text", "")))
        elif event == "done":
            return Answer(data, num_events, ttft_s, last_s)
    raise ClusterError("the stream ended without its last event: see ./launch.sh logs api")


def stream(
    settings: Settings, address: tuple[str, int], body: Mapping[str, Any]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Post to /generate with `stream`; yields the events up to `done`.

    Raises:
        ClusterError: the front door's error, an error event, or it cannot be reached.
    """
    host, port = address
    limit_s = settings.request_timeout + EXTRA_LIMIT_S
    connection = http.client.HTTPConnection(host_to_dial(host), port, timeout=limit_s)
    headers = {"content-type": "application/json", "accept": "text/event-stream"}
    try:
        text = json.dumps({**body, "stream": True})
        connection.request("POST", "/generate", text, headers | _make_authorization(settings))
        response = connection.getresponse()
        if response.status != 200:
            raise ClusterError(f"the front door answered {response.status}: {_read_error(response.read())}")
        for event, data in read_events(iter(response.readline, b"")):
            if event == "error":
                raise ClusterError(f"the answer ended with an error: {data.get('error', data)}")
            yield event, data
            if event == "done":
                return
    except (OSError, http.client.HTTPException) as error:
        raise ClusterError(f"no answer from {host}:{port}: {error!r}") from None
    finally:
        connection.close()


def read_events(lines: Iterator[bytes]) -> Iterator[tuple[str, Any]]:
    """Server-sent events as (event, parsed data); comments are skipped."""
    event, data = "message", ""
    for raw in lines:
        line = raw.decode("utf-8").rstrip("\r\n")
        if not line and data:
            yield event, json.loads(data)
        if not line:
            event, data = "message", ""
        elif line.startswith("event:"):
            event = line.removeprefix("event:").strip()
        elif line.startswith("data:"):
            data += line.removeprefix("data:").strip()


def _make_authorization(settings: Settings) -> dict[str, str]:
    """The header with the first key of API_KEYS_FILE, or OPENAI_API_KEY where the file has only hashes."""
    if settings.api_keys_file is None:
        return {}
    try:
        keys = read_api_keys(settings.api_keys_file)
    except KeysUnreadable as error:
        raise ClusterError(str(error)) from error
    texts = [key.text for key in keys if key.text is not None]
    key = texts[0] if texts else os.environ.get("OPENAI_API_KEY")
    if key is None:
        raise ClusterError("API_KEYS_FILE has no key but hashes: set OPENAI_API_KEY to one of the keys")
    return {"authorization": f"Bearer {key}"}


def _read_error(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body[:200].decode("utf-8", errors="replace")
