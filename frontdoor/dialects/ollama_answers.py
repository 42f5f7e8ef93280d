"""Writes answers as Ollama does: a JSON object, or one a line while the answer comes (NDJSON).

The last line has `done: true`, the reason, and the counts and times in nanoseconds. A tool call is sent as a
whole, because its arguments are an object. In silence nothing is sent: each line is one of the answer's.
"""

import json
from abc import abstractmethod
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from config.errors import ServiceError
from frontdoor.dialects.dialect import Asked, DialectRenderer
from frontdoor.http.errors import Cancelled
from frontdoor.http.events import to_json
from frontdoor.logprobs import chat_logprobs
from prompts.answer_parts import AnswerPart, CallArguments, CallStart, Content, Reasoning
from prompts.detokenizer import Detokenizer
from spool import Result, TokenLogprob, TokenRecord

NDJSON = "application/x-ndjson"

Line = dict[str, Any]


def rfc3339(unix: float) -> str:
    """Write a time as Ollama does."""
    return datetime.fromtimestamp(unix, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


class OllamaRenderer(DialectRenderer):
    """Writes one answer; its routes differ in the members that hold the text."""

    media_type = NDJSON

    def __init__(self, asked: Asked, texts: Detokenizer) -> None:
        self._asked, self._texts = asked, texts
        self._call: tuple[int, str, str] | None = None  # the open call: index, name, arguments so far
        self._unsent: list[TokenLogprob] = []  # of tokens whose text is held back

    @staticmethod
    @abstractmethod
    def members(text: str, **others: Any) -> Line:
        """Return the members that hold a piece of an answer, or all of it.

        Args:
            others: `thinking` and `tool_calls`, where there are any.
        """

    @classmethod
    def loaded(cls, model: str) -> Line:
        """Write the answer to a body that only asks to load the model."""
        now = rfc3339(datetime.now(UTC).timestamp())
        return {"model": model, "created_at": now, **cls.members(""), "done": True, "done_reason": "load"}

    def silence(self, text: str) -> bytes:
        return b""

    def tokens(self, choice: int, records: tuple[TokenRecord, ...]) -> bytes:
        lines: list[Line] = []
        for record in records:
            if record.logprobs is not None:
                self._unsent.append(record.logprobs)
            lines += self._lines(self._asked.answer.add(record.text))
        return _frames(lines)

    def done(self, choice: int, result: Result) -> bytes:
        if result.finish_reason == "cancelled":
            return self.error(Cancelled("the request was cancelled"))
        lines = self._lines(self._asked.answer.finish()) + self._lines(self._end_call())
        return _frames([*lines, self._last(result, self.members(""))])

    def error(self, error: ServiceError) -> bytes:
        return _frames([{"error": str(error)}])

    def whole(self, result: Result) -> Line:
        text = ""
        others: Line = {}
        for part in [*self._joined(self._asked.answer.whole(result)), *self._end_call()]:
            match part:
                case Content(piece):
                    text += piece
                case Reasoning(piece):
                    others["thinking"] = others.get("thinking", "") + piece
                case _:
                    others.setdefault("tool_calls", []).append(part)
        self._unsent += result.logprobs or ()
        return self._last(result, self.members(text, **others))

    def _lines(self, parts: Sequence[AnswerPart | dict[str, Any]]) -> list[Line]:
        lines = []
        for part in self._joined(parts):
            match part:
                case Content(text):
                    members = self.members(text)
                case Reasoning(text):
                    members = self.members("", thinking=text)
                case _:
                    members = self.members("", tool_calls=[part])
            lines.append({**self._head(), **members, "done": False, **self._take_logprobs()})
        return lines

    def _joined(self, parts: Sequence[Any]) -> list[Any]:
        """Return the parts with each whole call as an object; the last one may still be open."""
        joined: list[Any] = []
        for part in parts:
            match part:
                case CallStart(index, name):
                    joined += self._end_call()
                    self._call = index, name, ""
                case CallArguments(_, text) if self._call is not None:
                    self._call = *self._call[:2], self._call[2] + text
                case _:
                    joined += [*self._end_call(), part]
        return joined

    def _end_call(self) -> list[Any]:
        """Return the open call, or its text where its arguments are no object: they broke off."""
        if self._call is None:
            return []
        (index, name, text), self._call = self._call, None
        try:
            arguments = json.loads(text or "{}")
        except (ValueError, RecursionError):
            arguments = None
        if not isinstance(arguments, dict):
            return [Content(f'{{"name": {json.dumps(name)}, "arguments": {text}')]
        function = {"index": index, "name": name, "arguments": arguments}
        return [{"id": self._asked.answer.call_id(index), "function": function}]

    def _last(self, result: Result, members: Line) -> Line:
        reason = "length" if result.finish_reason == "length" else "stop"
        counted = {**_times(result), "prompt_eval_count": result.usage.prompt_tokens}
        counted["eval_count"] = result.usage.completion_tokens
        ended = {"done": True, "done_reason": reason, **counted}
        return {**self._head(), **members, **ended, **self._take_logprobs()}

    def _head(self) -> Line:
        return {"model": self._asked.model, "created_at": rfc3339(datetime.now(UTC).timestamp())}

    def _take_logprobs(self) -> Line:
        tokens, self._unsent = self._unsent, []
        return {"logprobs": chat_logprobs(self._texts, tokens)["content"]} if tokens else {}


class ChatRenderer(OllamaRenderer):
    """Writes the answer to /api/chat."""

    @staticmethod
    def members(text: str, **others: Any) -> Line:
        return {"message": {"role": "assistant", "content": text, **others}}


class GenerateRenderer(OllamaRenderer):
    """Writes the answer to /api/generate."""

    @staticmethod
    def members(text: str, **others: Any) -> Line:
        return {"response": text, **others}


def _times(result: Result) -> dict[str, int]:
    """Return the times of a result in nanoseconds; to load the model is to wait for it."""
    said = result.performance
    total, queue, prefill = (float(said.get(name) or 0) for name in ("total_s", "queue_s", "prefill_s"))
    seconds = {
        "total_duration": total,
        "load_duration": queue,
        "prompt_eval_duration": prefill,
        "eval_duration": max(0.0, total - queue - prefill),
    }
    return {name: round(value * 1e9) for name, value in seconds.items()}


def _frames(lines: Sequence[Line]) -> bytes:
    return b"".join(f"{to_json(line)}\n".encode() for line in lines)
