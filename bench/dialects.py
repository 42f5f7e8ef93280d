"""The two APIs that the load tool speaks: OpenAI's chat completions, and this project's own /generate.

A dialect writes a body for an ask and reads events into a reply. Knows nothing of connections or clocks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Protocol

from bench.http_stream import Event


@dataclass(frozen=True)
class Ask:
    """One request of a load, in no API's words; `history` has the turns before, question and answer each."""

    prompt: str
    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    history: tuple[tuple[str, str], ...] = ()

    @property
    def messages(self) -> list[dict[str, str]]:
        """The whole chat."""
        texts = [text for turn in self.history for text in turn] + [self.prompt]
        roles = ("user", "assistant")
        return [{"role": roles[index % 2], "content": text} for index, text in enumerate(texts)]


@dataclass
class Reply:
    """What came back for one ask. Times are seconds since the load's clock started."""

    sent_s: float = 0.0
    sent_unix: float = 0.0
    text_times_s: list[float] = field(default_factory=list)  # one for each event with text or a token
    end_s: float = 0.0
    text: str = ""
    token_ids: list[int] = field(default_factory=list)  # where the API tells them
    finish_reason: str | None = None
    usage: dict[str, Any] = field(default_factory=dict)
    performance: dict[str, Any] = field(default_factory=dict)
    id: str = ""
    error: str | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens of the answer: the server's count, else the events that carried text."""
        return int(self.usage.get("completion_tokens", len(self.text_times_s)))

    @property
    def num_cached_tokens(self) -> int:
        """Tokens of the prompt that the server found in its prompt cache, where it says so."""
        details = self.usage.get("prompt_tokens_details") or self.usage
        return int(details.get("cached_tokens") or 0)

    @property
    def ttft_s(self) -> float:
        """From sending to the first text."""
        return self.text_times_s[0] - self.sent_s

    @property
    def end_to_end_s(self) -> float:
        """From sending to the end of the answer."""
        return self.end_s - self.sent_s

    @property
    def gaps_s(self) -> list[float]:
        """Inter-token latencies: the times between events with text."""
        times = self.text_times_s
        return [after - before for before, after in pairwise(times)]


class Dialect(Protocol):
    """How one API is asked and read."""

    path: str

    def body(self, ask: Ask) -> dict[str, Any]: ...

    def read(self, event: Event, at_s: float, reply: Reply) -> None: ...


def _sampling(ask: Ask) -> dict[str, Any]:
    """Members both APIs share; a seed only where asked for, because mlx_lm.server then stops batching."""
    fields: dict[str, Any] = {
        "messages": ask.messages,
        "max_tokens": ask.max_tokens,
        "temperature": ask.temperature,
        "stream": True,
    }
    if ask.top_p != 1.0:
        fields["top_p"] = ask.top_p
    if ask.seed is not None:
        fields["seed"] = ask.seed
    return fields


class OpenAIChat:
    """POST /v1/chat/completions with a usage chunk."""

    path = "/v1/chat/completions"

    def __init__(self, model: str | None = None) -> None:
        self._model = model

    def body(self, ask: Ask) -> dict[str, Any]:
        model = {} if self._model is None else {"model": self._model}
        return {**model, **_sampling(ask), "stream_options": {"include_usage": True}}

    def read(self, event: Event, at_s: float, reply: Reply) -> None:
        if event.data == "[DONE]":
            reply.end_s = at_s
            return
        chunk = json.loads(event.data)
        if "error" in chunk:
            reply.error = str(chunk["error"])
            return
        reply.id = chunk.get("id", reply.id)
        reply.usage = chunk.get("usage") or reply.usage
        for choice in chunk.get("choices", ()):
            text = choice.get("delta", {}).get("content")
            if text:
                reply.text += text
                reply.text_times_s.append(at_s)
            reply.finish_reason = choice.get("finish_reason") or reply.finish_reason


class Generate:
    """POST /generate of this project: one event for each token, with its id."""

    path = "/generate"

    def body(self, ask: Ask) -> dict[str, Any]:
        return _sampling(ask)

    def read(self, event: Event, at_s: float, reply: Reply) -> None:
        data = json.loads(event.data)
        if event.name == "token":
            reply.text_times_s.append(at_s)
            reply.token_ids.append(int(data["token_id"]))
        elif event.name == "done":
            self._take_result(data, at_s, reply)
        elif event.name == "error":
            reply.error = str(data.get("error", data))
        elif event.name == "reset":
            reply.error = "the stream was reset: tokens were lost"

    def _take_result(self, data: Mapping[str, Any], at_s: float, reply: Reply) -> None:
        reply.end_s = at_s
        reply.id = data["id"]
        reply.text = data["text"]
        reply.finish_reason = data["finish_reason"]
        reply.usage = data["usage"]
        reply.performance = data["performance"]
