"""Writes answers as OpenAI's Responses API does: the response, and its stream of events.

A stream is response.created, response.in_progress, the events of the items (responses_items.py), and
response.completed, .incomplete or .failed with the whole response; no [DONE]. Events count up in
`sequence_number`. Clients such as codex leave a stream without events, so keepalive events fill a silence.
Knows nothing of how an answer comes about.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from config.errors import ServiceError
from frontdoor.dialects.dialect import Asked, DialectRenderer
from frontdoor.dialects.responses_bodies import ResponsesBody
from frontdoor.dialects.responses_items import AnswerItems, Event, Logprobs
from frontdoor.http.errors import Cancelled
from frontdoor.http.events import data_frame, to_json
from frontdoor.logprobs import chat_logprobs
from prompts.formats import AnswerPart
from prompts.tokenizer import PromptTokenizer
from spool import Result, TokenLogprob, TokenRecord


class ResponsesRenderer(DialectRenderer):
    """Writes one answer."""

    def __init__(self, body: ResponsesBody, asked: Asked, tokenizer: PromptTokenizer) -> None:
        self._answer, self._tokenizer = asked.answer, tokenizer
        self._items = AnswerItems(asked.answer, body.custom_tools, self._take_logprobs)
        self._unsent: list[TokenLogprob] = []  # of tokens whose text is held back
        self._num_events = 0
        self._response: dict[str, Any] = {
            "id": f"resp_{asked.accepted.id}",
            "object": "response",
            "created_at": int(asked.accepted.created_unix),
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "model": asked.model,
            "output": [],
            "usage": None,
            **body.echo(),
        }

    def opening(self) -> bytes:
        return self._frames([self._about("created"), self._about("in_progress")])

    def tokens(self, choice: int, records: tuple[TokenRecord, ...]) -> bytes:
        self._unsent += [record.logprobs for record in records if record.logprobs is not None]
        return self._frames(self._items.add(self._answer.add("".join(record.text for record in records))))

    def done(self, choice: int, result: Result) -> bytes:
        if result.finish_reason == "cancelled":
            return self.error(Cancelled("the request was cancelled"))
        events = self._complete(self._answer.finish(), result)
        return self._frames([*events, self._about(self._response["status"])])

    def error(self, error: ServiceError) -> bytes:
        said = {"code": error.code, "message": str(error)}
        self._response |= {"status": "failed", "error": said, "output": self._items.finished}
        return self._frames([self._about("failed")])

    def silence(self, text: str) -> bytes:
        return super().silence(text) + self._frames([{"type": "keepalive"}])

    def whole(self, result: Result) -> dict[str, Any]:
        self._unsent += result.logprobs or ()
        self._complete(self._answer.whole(result), result)
        return self._response

    def _complete(self, parts: Sequence[AnswerPart], result: Result) -> list[Event]:
        """Complete the response; return the last events of its items."""
        status = "incomplete" if result.finish_reason == "length" else "completed"
        events = [*self._items.add(parts), *self._items.finish(status)]
        self._response |= {
            "status": status,
            "output": self._items.finished,
            "usage": self._usage(result),
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "completed_at": int(result.finished_unix) if status == "completed" else None,
        }
        return events

    def _usage(self, result: Result) -> dict[str, Any]:
        usage, reasoning = result.usage, self._items.reasoning
        num_reasoning_tokens = len(self._tokenizer.encode_raw(reasoning)) if reasoning else 0
        return {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": min(num_reasoning_tokens, usage.completion_tokens)},
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        }

    def _take_logprobs(self) -> Logprobs:
        tokens, self._unsent = self._unsent, []
        written: Logprobs = chat_logprobs(self._tokenizer.detokenizer, tokens)["content"]
        return written

    def _about(self, kind: str) -> Event:
        return {"type": f"response.{kind}", "response": self._response}

    def _frames(self, events: Iterable[Event]) -> bytes:
        frames = b""
        for event in events:
            numbered = {**event, "sequence_number": self._num_events}
            frames += data_frame(to_json(numbered), event=event["type"])
            self._num_events += 1
        return frames
