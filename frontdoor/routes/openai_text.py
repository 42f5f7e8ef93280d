"""The shared part of the two OpenAI text APIs: from a body to an answer, whole or streamed; ids and usage.

A stream has a chunk with the role (chat only) just before the first text, chunks with text, one with the
finish reason, one with the usage where the client wants it, and [DONE]; an error ends it. Knows no route; a
`TextApi` defines the form of a choice.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response

from config.errors import ServiceError
from frontdoor.accepting import Accepted, Draft, accept
from frontdoor.answering import stream_answer, wait_for_result
from frontdoor.http.bodies import read_json
from frontdoor.http.errors import Cancelled, InvalidRequest, body_of
from frontdoor.http.events import data_frame, to_json
from frontdoor.schemas import OpenAIFields, StreamOptions
from frontdoor.state import FrontDoor, caller, front_door
from spool import Result, TokenRecord

Choice = dict[str, Any]
TextBody = TypeVar("TextBody", bound=OpenAIFields)
DONE_FRAME = data_frame("[DONE]")


def usage_of(result: Result) -> dict[str, Any]:
    """Write usage as OpenAI does."""
    usage = result.usage
    return {
        **count_usage(usage.prompt_tokens, usage.completion_tokens),
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def count_usage(num_prompt_tokens: int, num_answer_tokens: int) -> dict[str, int]:
    """Write the usage of an answer, or of its first tokens."""
    return {
        "prompt_tokens": num_prompt_tokens,
        "completion_tokens": num_answer_tokens,
        "total_tokens": num_prompt_tokens + num_answer_tokens,
    }


@dataclass(frozen=True)
class TextApi:
    """The differences between the APIs.

    `choice` makes the choice of a whole answer, `delta` that of a chunk, from text (None in the last) and
    finish reason; `opening` comes before the first text, if the API has one.
    """

    prefix: str
    kind: str
    chunk_kind: str
    choice: Callable[[Result], Choice]
    delta: Callable[[str | None, str | None], Choice]
    opening: Choice | None = None

    def head(self, front: FrontDoor, accepted: Accepted, kind: str) -> dict[str, Any]:
        """Return the first members of an answer, or of every chunk of a stream."""
        return {
            "id": f"{self.prefix}-{accepted.id}",
            "object": kind,
            "created": int(accepted.created_unix),
            "model": front.model_name,
            "system_fingerprint": f"fp_{front.tokenizer.hash[:12]}",
        }


async def answer_text(
    http: HttpRequest, api: TextApi, model: type[TextBody], draft_of: Callable[[TextBody], Draft]
) -> Response:
    """Read the body, accept the request, and answer.

    Raises:
        Cancelled: the request was cancelled; these APIs have no finish reason for that.
    """
    front = front_door(http)
    body = await read_json(http, model, max_bytes=front.settings.max_body_bytes)
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest("'stream_options' is for streams: set 'stream' to true", param="stream_options")
    accepted = await accept(front, draft_of(body), caller=caller(http))
    if body.stream:
        head = api.head(front, accepted, api.chunk_kind)
        renderer = ChunkRenderer(api, head, body.stream_options, accepted.num_prompt_tokens)
        return stream_answer(front, accepted, renderer)
    result = await wait_for_result(front, http, accepted)
    if result.finish_reason == "cancelled":
        raise Cancelled("the request was cancelled")
    head = api.head(front, accepted, api.kind)
    return JSONResponse({**head, "choices": [api.choice(result)], "usage": usage_of(result)})


class ChunkRenderer:
    """Writes events as OpenAI chunks."""

    ends_at_reset = True
    is_quiet = True

    def __init__(
        self, api: TextApi, head: dict[str, Any], options: StreamOptions | None, num_prompt_tokens: int
    ) -> None:
        options = options or StreamOptions()
        self._api = api
        self._with_usage = bool(options.include_usage)
        self._counts_usage = bool(options.continuous_usage_stats)
        # Where usage has its own chunk, all others have a null usage.
        self._head = {**head, "usage": None} if self._with_usage else head
        self._num_prompt_tokens, self._num_answer_tokens = num_prompt_tokens, 0
        self._is_open = False
        self._num_sent = 0  # characters of the answer

    def tokens(self, records: tuple[TokenRecord, ...]) -> bytes:
        opening = self._open()
        self._num_answer_tokens = records[-1].index + 1
        return opening + self._text("".join(record.text for record in records))

    def reset(self) -> bytes:
        return self.error(ServiceError("the log lost tokens that this stream had sent; retry the request"))

    def done(self, result: Result) -> bytes:
        if result.finish_reason == "cancelled":
            return self.error(Cancelled("the request was cancelled"))
        frames = [self._open()]
        self._num_answer_tokens = result.usage.completion_tokens
        frames.append(self._text(result.text[self._num_sent :]))
        frames.append(self._chunk(self._api.delta(None, result.finish_reason)))
        if self._with_usage:
            frames.append(data_frame(to_json({**self._head, "choices": [], "usage": usage_of(result)})))
        return b"".join(frames) + DONE_FRAME

    def error(self, error: ServiceError) -> bytes:
        return data_frame(to_json(body_of(error)))

    def _open(self) -> bytes:
        choice = None if self._is_open else self._api.opening
        self._is_open = True
        return b"" if choice is None else self._chunk(choice)

    def _text(self, text: str) -> bytes:
        self._num_sent += len(text)
        return self._chunk(self._api.delta(text, None)) if text else b""

    def _chunk(self, choice: dict[str, Any]) -> bytes:
        counted = {}
        if self._counts_usage:
            counted = {"usage": count_usage(self._num_prompt_tokens, self._num_answer_tokens)}
        return data_frame(to_json({**self._head, **counted, "choices": [choice]}))
