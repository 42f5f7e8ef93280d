"""Writes a choice of a chat: a message, or deltas, with text, reasoning and tool calls.

frontdoor/chat_answer.py reads the answer. Knows OpenAI's form; nothing of requests.
"""

from collections.abc import Sequence
from typing import Any

from frontdoor.chat_answer import ChatAnswer
from frontdoor.logprobs import chat_logprobs
from prompts.detokenizer import Detokenizer
from prompts.formats import AnswerPart, CallArguments, CallStart, Content, Reasoning
from spool import Result, TokenLogprob, TokenRecord

Choice = dict[str, Any]


class ChatWriter:
    """Writes one choice."""

    def __init__(self, index: int, answer: ChatAnswer, texts: Detokenizer) -> None:
        self._index, self._answer, self._texts = index, answer, texts
        self._unsent: list[TokenLogprob] = []  # of tokens whose text is held back

    def opening(self) -> list[Choice]:
        return [self._choice({"delta": {"role": "assistant", "content": ""}})]

    def tokens(self, records: tuple[TokenRecord, ...]) -> list[Choice]:
        self._unsent += [record.logprobs for record in records if record.logprobs is not None]
        return self._deltas(self._answer.add("".join(record.text for record in records)))

    def done(self, result: Result) -> list[Choice]:
        deltas = self._deltas(self._answer.finish())
        last = self._choice({"delta": {}}, self._take_logprobs(), self._answer.finish_reason(result))
        return [*deltas, last]

    def whole(self, result: Result) -> Choice:
        message: dict[str, Any] = {"role": "assistant", "content": None, "refusal": None}
        calls: list[dict[str, Any]] = []
        for part in self._answer.whole(result):
            match part:
                case Reasoning(text):
                    message["reasoning_content"] = message.get("reasoning_content", "") + text
                case CallStart(index, name):
                    calls.append(self._call(index, name))
                case CallArguments(index, text):
                    calls[index]["function"]["arguments"] += text
        if self._answer.content or not calls:
            message["content"] = self._answer.content
        if calls:
            message["tool_calls"] = calls
        self._unsent += result.logprobs or ()
        return self._choice({"message": message}, self._take_logprobs(), self._answer.finish_reason(result))

    def _deltas(self, parts: Sequence[AnswerPart]) -> list[Choice]:
        deltas = []
        for part in parts:
            match part:
                case Content(text):
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
        return {"id": self._answer.call_id(index), "type": "function", "function": function}

    def _take_logprobs(self) -> Choice | None:
        tokens, self._unsent = self._unsent, []
        return chat_logprobs(self._texts, tokens) if tokens else None

    def _choice(
        self, part: Choice, logprobs: Choice | None = None, finish_reason: str | None = None
    ) -> Choice:
        return {"index": self._index, **part, "logprobs": logprobs, "finish_reason": finish_reason}
