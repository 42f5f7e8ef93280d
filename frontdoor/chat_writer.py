"""Writes a choice of a chat: a message, or deltas, with text, reasoning and tool calls.

The answer's text comes from the spool as the model wrote it; prompts/formats.py splits it. Knows OpenAI's
form; nothing of requests.
"""

from collections.abc import Callable, Sequence
from typing import Any

from frontdoor.kept_turns import make_call_id
from frontdoor.logprobs import chat_logprobs
from prompts.detokenizer import Detokenizer
from prompts.formats import AnswerPart, AnswerReader, CallArguments, CallStart, Content, Reasoning
from spool import Result, TokenLogprob, TokenRecord

Choice = dict[str, Any]


class ChatWriter:
    """Writes one choice."""

    def __init__(
        self,
        index: int,
        request_id: str,
        reader: AnswerReader,
        texts: Detokenizer,
        on_end: Callable[[str], None],
    ) -> None:
        """Args: on_end: called at the end with the answer's text."""
        self._index, self._request_id = index, request_id
        self._reader, self._texts, self._on_end = reader, texts, on_end
        self._content: list[str] = []
        self._unsent: list[TokenLogprob] = []  # of tokens whose text is held back

    def opening(self) -> list[Choice]:
        return [self._choice({"delta": {"role": "assistant", "content": ""}})]

    def tokens(self, records: tuple[TokenRecord, ...]) -> list[Choice]:
        self._unsent += [record.logprobs for record in records if record.logprobs is not None]
        return self._deltas(self._reader.add("".join(record.text for record in records)))

    def done(self, result: Result) -> list[Choice]:
        deltas = self._deltas(self._reader.finish())
        self._end()
        last = self._choice({"delta": {}}, self._take_logprobs(), self._finish_reason(result))
        return [*deltas, last]

    def whole(self, result: Result) -> Choice:
        message: dict[str, Any] = {"role": "assistant", "content": None, "refusal": None}
        calls: list[dict[str, Any]] = []
        for part in [*self._reader.add(result.text), *self._reader.finish()]:
            match part:
                case Content(text):
                    self._content.append(text)
                case Reasoning(text):
                    message["reasoning_content"] = message.get("reasoning_content", "") + text
                case CallStart(index, name):
                    calls.append(self._call(index, name))
                case CallArguments(index, text):
                    calls[index]["function"]["arguments"] += text
        content = self._end()
        if content or not calls:
            message["content"] = content
        if calls:
            message["tool_calls"] = calls
        self._unsent += result.logprobs or ()
        return self._choice({"message": message}, self._take_logprobs(), self._finish_reason(result))

    def _end(self) -> str:
        content = "".join(self._content)
        self._on_end(content)
        return content

    def _finish_reason(self, result: Result) -> str:
        is_called = self._reader.num_calls and result.finish_reason == "stop"
        return "tool_calls" if is_called else result.finish_reason

    def _deltas(self, parts: Sequence[AnswerPart]) -> list[Choice]:
        deltas = []
        for part in parts:
            match part:
                case Content(text):
                    self._content.append(text)
                    delta: dict[str, Any] = {"content": text}
                case Reasoning(text):
                    delta = {"reasoning_content": text}
                case CallStart(index, name):
                    delta = {"tool_calls": [{"index": index, **self._call(index, name)}]}
                case CallArguments(index, text):
                    delta = {"tool_calls": [{"index": index, "function": {"arguments": text}}]}
            deltas.append(self._choice({"delta": delta}, self._take_logprobs()))
        return deltas

    def _call(self, index: int, name: str) -> dict[str, Any]:
        """Return a call without its arguments."""
        function = {"name": name, "arguments": ""}
        return {"id": make_call_id(self._request_id, index), "type": "function", "function": function}

    def _take_logprobs(self) -> Choice | None:
        tokens, self._unsent = self._unsent, []
        return chat_logprobs(self._texts, tokens) if tokens else None

    def _choice(
        self, part: Choice, logprobs: Choice | None = None, finish_reason: str | None = None
    ) -> Choice:
        return {"index": self._index, **part, "logprobs": logprobs, "finish_reason": finish_reason}
