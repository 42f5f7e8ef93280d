"""Writes an answer as Anthropic does: a message of blocks, or the events of a stream.

    message_start
    content_block_start, content_block_delta …, content_block_stop      for each block
    message_delta       stop reason and usage
    message_stop

A block is a text, a tool call or reasoning. During silence a stream has `ping` events; an `error` ends it.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from pydantic_core import from_json

from config.errors import ServiceError
from frontdoor.dialects.dialect import Asked, DialectRenderer
from frontdoor.http.dialects import error_body
from frontdoor.http.errors import Cancelled, body_of
from frontdoor.http.events import data_frame, to_json
from prompts.formats import AnswerPart, CallArguments, CallStart, Content, Reasoning
from prompts.tokenizer import PromptTokenizer
from spool import Result, TokenRecord, Usage

PATH = "/v1/messages"
_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
_READERS = (partial(json.loads, strict=False), partial(from_json, allow_partial=True))
_Event = dict[str, Any]


class MessagesRenderer(DialectRenderer):
    """Writes one answer."""

    def __init__(self, asked: Asked, find_stop: Callable[[Result], str | None]) -> None:
        """Args: find_stop: returns the stop sequence that ended an answer."""
        self._asked, self._answer, self._find_stop = asked, asked.answer, find_stop
        self._num_blocks = 0
        self._open: str | None = None  # the type of the block that is not closed

    def opening(self) -> bytes:
        usage = Usage(self._asked.accepted.num_prompt_tokens)
        return _frames([{"type": "message_start", "message": self._message([], usage, None, None)}])

    def tokens(self, choice: int, records: tuple[TokenRecord, ...]) -> bytes:
        return _frames(self._events(self._answer.add("".join(record.text for record in records))))

    def done(self, choice: int, result: Result) -> bytes:
        if result.finish_reason == "cancelled":
            return self.error(Cancelled("the request was cancelled"))
        events = [*self._events(self._answer.finish()), *self._close()]
        reason, stop = self._ending(result)
        delta = {"stop_reason": reason, "stop_sequence": stop}
        events.append({"type": "message_delta", "delta": delta, "usage": _usage(result.usage)})
        return _frames([*events, {"type": "message_stop"}])

    def error(self, error: ServiceError) -> bytes:
        return _frames([dict(error_body(PATH, error.status, body_of(error)))])

    def silence(self, text: str) -> bytes:
        return _frames([{"type": "ping"}])

    def whole(self, result: Result) -> dict[str, Any]:
        blocks: list[dict[str, Any]] = []
        for event in [*self._events(self._answer.whole(result)), *self._close()]:
            match event:
                case {"content_block": block}:
                    blocks.append(block | ({"input": ""} if "input" in block else {}))
                case {"delta": {"text": text}}:
                    blocks[-1]["text"] += text
                case {"delta": {"thinking": text}}:
                    blocks[-1]["thinking"] += text
                case {"delta": {"partial_json": text}}:
                    blocks[-1]["input"] += text
        for block in blocks:
            if "input" in block:
                block["input"] = read_input(block["input"])
        return self._message(blocks, result.usage, *self._ending(result))

    def _events(self, parts: Sequence[AnswerPart]) -> Iterator[_Event]:
        for part in parts:
            match part:
                case Reasoning(text):
                    if self._open != "thinking":
                        yield from self._begin({"type": "thinking", "thinking": "", "signature": ""})
                    yield self._delta({"type": "thinking_delta", "thinking": text})
                case Content(text):
                    if self._open != "text":
                        yield from self._begin({"type": "text", "text": ""})
                    yield self._delta({"type": "text_delta", "text": text})
                case CallStart(index, name):
                    called = {"id": self._answer.call_id(index), "name": name, "input": {}}
                    yield from self._begin({"type": "tool_use", **called})
                case CallArguments(_, text):
                    yield self._delta({"type": "input_json_delta", "partial_json": text})

    def _begin(self, block: dict[str, Any]) -> Iterator[_Event]:
        yield from self._close()
        self._open = block["type"]
        self._num_blocks += 1
        yield {"type": "content_block_start", "index": self._num_blocks - 1, "content_block": block}

    def _delta(self, delta: dict[str, Any]) -> _Event:
        return {"type": "content_block_delta", "index": self._num_blocks - 1, "delta": delta}

    def _close(self) -> Iterator[_Event]:
        if self._open == "thinking":  # clients send only signed reasoning back
            yield self._delta({"type": "signature_delta", "signature": ""})
        if self._open is not None:
            yield {"type": "content_block_stop", "index": self._num_blocks - 1}
        self._open = None

    def _ending(self, result: Result) -> tuple[str, str | None]:
        """Return the stop reason and the stop sequence, after the last part."""
        stop = self._find_stop(result)
        reason = self._answer.finish_reason(result)
        if reason == "stop" and stop is not None:
            return "stop_sequence", stop
        return _STOP_REASONS[reason], None

    def _message(
        self, blocks: list[dict[str, Any]], usage: Usage, reason: str | None, stop: str | None
    ) -> dict[str, Any]:
        return {
            "id": f"msg_{self._answer.request_id}",
            "type": "message",
            "role": "assistant",
            "model": self._asked.model,
            "content": blocks,
            "stop_reason": reason,
            "stop_sequence": stop,
            "usage": _usage(usage),
        }


def find_stop(tokenizer: PromptTokenizer, stops: Sequence[str], result: Result) -> str | None:
    """Return the stop sequence that ended an answer: its tokens are in the result, its text is not."""
    token_ids, is_stopped = result.token_ids, result.finish_reason == "stop"
    if not stops or not is_stopped or not token_ids or token_ids[-1] in tokenizer.end_token_ids:
        return None
    drawn = tokenizer.detokenizer.text_of(token_ids)
    found = [stop for stop in stops if result.text + stop in drawn]
    return min(found or stops, key=len)  # of those that begin there, the one that was complete first


def read_input(arguments: str) -> dict[str, Any]:
    """Return the arguments of a call as an object; of arguments that break off, what is complete."""
    for read in _READERS:
        try:
            found = read(arguments or "{}")
            to_json(found).encode()  # JSON has no NaN and no half characters
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict):
            return found
    return {}


def _usage(usage: Usage) -> dict[str, Any]:
    """Write usage as Anthropic counts it: input tokens without those that were cached."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }


def _frames(events: Iterator[_Event] | list[_Event]) -> bytes:
    return b"".join(data_frame(to_json(event), event=event["type"]) for event in events)
