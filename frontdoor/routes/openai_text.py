"""The shared part of the two OpenAI text APIs: from a body to an answer, whole or streamed; ids and usage.

A stream has for each choice an opening just before its first text, chunks with text, and one with the finish
reason; then one chunk with the usage where the client wants it, and [DONE]. An error ends it. Knows no route:
a `ChoiceWriter` writes each choice in its route's form.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response
from msgspec.structs import replace

from config.errors import ServiceError
from frontdoor.accepting import Accepted, accept
from frontdoor.answering import Renderer, stream_answer, wait_for_results
from frontdoor.encoding import Draft, in_worker
from frontdoor.http.bodies import read_json
from frontdoor.http.errors import Cancelled, InvalidRequest, body_of
from frontdoor.http.events import COMMENT_END, data_frame, to_json
from frontdoor.logprobs import has_logprobs
from frontdoor.schemas import OpenAIFields, StreamOptions
from frontdoor.state import FrontDoor, caller, front_door
from spool import Result, TokenRecord

Choice = dict[str, Any]
TextBody = TypeVar("TextBody", bound=OpenAIFields)
DONE_FRAME = data_frame("[DONE]")


class ChoiceWriter(Protocol):
    """Writes one choice of an answer, as a whole or in chunks of a stream."""

    def opening(self) -> list[Choice]:
        """Return the chunks before the first text."""

    def tokens(self, records: tuple[TokenRecord, ...]) -> list[Choice]:
        """Return the chunks for new tokens; none while there is no text."""

    def done(self, result: Result) -> list[Choice]:
        """Return the last chunks, with the finish reason."""

    def whole(self, result: Result) -> Choice:
        """Return the choice of a whole answer."""


@dataclass(frozen=True)
class TextApi:
    """The names of an API."""

    prefix: str
    kind: str
    chunk_kind: str


@dataclass(frozen=True)
class Asked:
    """What a body asks for: drafts, `num_choices` answers to each, and a writer for each choice.

    `has_answer`: the client gets tokens besides its prompt's.
    """

    drafts: Sequence[Draft]
    num_choices: int
    make_writer: Callable[[int, Accepted], ChoiceWriter]
    has_answer: bool = True


async def answer_text(
    http: HttpRequest,
    api: TextApi,
    model: type[TextBody],
    read: Callable[[FrontDoor, TextBody], Asked],
) -> Response:
    """Read the body, accept its requests, and answer.

    Raises:
        Cancelled: a request was cancelled; these APIs have no finish reason for that.
    """
    front = front_door(http)
    body = await read_json(http, model, max_bytes=front.settings.max_body_bytes)
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest("'stream_options' is for streams: set 'stream' to true", param="stream_options")
    asked = read(front, body)
    accepted = await accept(front, asked.drafts, caller=caller(http), num_choices=asked.num_choices)
    writers = [asked.make_writer(index, each) for index, each in enumerate(accepted)]
    head = {
        "id": f"{api.prefix}-{accepted[0].id}",
        "object": api.chunk_kind if body.stream else api.kind,
        "created": int(accepted[0].created_unix),
        "model": front.model_name,
        "system_fingerprint": f"fp_{front.tokenizer.hash[:12]}",
    }
    if body.stream:
        tokens = [each.num_prompt_tokens for each in accepted[:: asked.num_choices]]
        renderer = ChunkRenderer(writers, head, body.stream_options, sum(tokens), asked)
        return stream_answer(front, accepted, renderer)
    results = await wait_for_results(front, http, accepted)
    if any(result.finish_reason == "cancelled" for result in results):
        raise Cancelled("the request was cancelled")
    results = with_prompt_logprobs(results, asked.num_choices)

    def write() -> JSONResponse:
        choices = [writer.whole(result) for writer, result in zip(writers, results, strict=True)]
        return JSONResponse({**head, "choices": choices, "usage": usage_of(results, asked)})

    return await in_worker(front, write) if has_logprobs(results) else write()


def with_prompt_logprobs(results: Sequence[Result], num_choices: int) -> list[Result]:
    """Return the results, each with the prompt's logprobs, which only its prompt's first one has."""
    firsts = [results[number - number % num_choices] for number in range(len(results))]
    return [
        replace(result, prompt_logprobs=first.prompt_logprobs)
        for result, first in zip(results, firsts, strict=True)
    ]


def usage_of(results: Sequence[Result], asked: Asked) -> dict[str, Any]:
    """Write usage as OpenAI does; a prompt counts once for all its choices."""
    firsts = [result.usage for result in results[:: asked.num_choices]]
    num_answer_tokens = sum(result.usage.completion_tokens for result in results) if asked.has_answer else 0
    return {
        **count_usage(sum(usage.prompt_tokens for usage in firsts), num_answer_tokens),
        "prompt_tokens_details": {"cached_tokens": sum(usage.cached_tokens for usage in firsts)},
    }


def count_usage(num_prompt_tokens: int, num_answer_tokens: int) -> dict[str, int]:
    """Write the usage of an answer, or of its first tokens."""
    return {
        "prompt_tokens": num_prompt_tokens,
        "completion_tokens": num_answer_tokens,
        "total_tokens": num_prompt_tokens + num_answer_tokens,
    }


class ChunkRenderer(Renderer):
    """Writes events as OpenAI chunks."""

    comment_end = COMMENT_END

    def __init__(
        self,
        writers: Sequence[ChoiceWriter],
        head: dict[str, Any],
        options: StreamOptions | None,
        num_prompt_tokens: int,
        asked: Asked,
    ) -> None:
        options = options or StreamOptions()
        self._writers, self._asked = writers, asked
        self._with_usage = bool(options.include_usage)
        self._counts_usage = bool(options.continuous_usage_stats)
        # Where usage has its own chunk, all others have a null usage.
        self._head = {**head, "usage": None} if self._with_usage else head
        self._num_prompt_tokens = num_prompt_tokens
        self._num_answer_tokens = [0] * len(writers)
        self._open: set[int] = set()
        self._results: dict[int, Result] = {}

    def tokens(self, choice: int, records: tuple[TokenRecord, ...]) -> bytes:
        self._num_answer_tokens[choice] = records[-1].index + 1
        # A chunk for each token: readers count them; open-interpreter 0.4.3 loses code beside a fence.
        written = [part for record in records for part in self._writers[choice].tokens((record,))]
        # Without text the opening goes out as well: the client sees that its answer has begun.
        return self._chunks(self._opening(choice) + written)

    def done(self, choice: int, result: Result) -> bytes:
        if result.finish_reason == "cancelled":
            return self.error(Cancelled("the request was cancelled"))
        self._num_answer_tokens[choice] = result.usage.completion_tokens
        self._results[choice] = result
        frames = self._chunks(self._opening(choice) + self._writers[choice].done(result))
        return frames if len(self._results) < len(self._writers) else frames + self._end()

    def error(self, error: ServiceError) -> bytes:
        return data_frame(to_json(body_of(error)))

    def _end(self) -> bytes:
        if not self._with_usage:
            return DONE_FRAME
        usage = usage_of([self._results[i] for i in range(len(self._writers))], self._asked)
        return data_frame(to_json({**self._head, "choices": [], "usage": usage})) + DONE_FRAME

    def _opening(self, choice: int) -> list[Choice]:
        if choice in self._open:
            return []
        self._open.add(choice)
        return self._writers[choice].opening()

    def _chunks(self, choices: list[Choice]) -> bytes:
        counted = {}
        if self._counts_usage:
            num_tokens = sum(self._num_answer_tokens) if self._asked.has_answer else 0
            counted = {"usage": count_usage(self._num_prompt_tokens, num_tokens)}
        return b"".join(
            data_frame(to_json({**self._head, **counted, "choices": [choice]})) for choice in choices
        )
