"""What the two OpenAI text APIs share: the ids, usage and errors of answers and chunks.

A stream is: a chunk with the role (chat only) just before the first text, chunks with text, one with the
finish reason, one with the usage where it was asked for, [DONE]; after an error nothing more. Knows nothing
of routes.
"""

from typing import Any

from config.errors import ServiceError
from frontdoor.accepting import Accepted
from frontdoor.errors import Cancelled, InvalidRequest, body_of
from frontdoor.events import data_frame, to_json
from frontdoor.schemas import OpenAIFields, StreamOptions
from frontdoor.state import FrontDoor
from spool import Result, TokenRecord

DONE_FRAME = data_frame("[DONE]")


def usage_of(result: Result) -> dict[str, Any]:
    """Write usage as OpenAI does."""
    usage = result.usage
    return {
        **count_usage(usage.prompt_tokens, usage.completion_tokens),
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def count_usage(num_prompt_tokens: int, num_answer_tokens: int) -> dict[str, int]:
    """Write the usage of an answer, or of the part of it that has come."""
    return {
        "prompt_tokens": num_prompt_tokens,
        "completion_tokens": num_answer_tokens,
        "total_tokens": num_prompt_tokens + num_answer_tokens,
    }


def envelope(front: FrontDoor, accepted: Accepted, *, prefix: str, kind: str) -> dict[str, Any]:
    """Return the members that an answer or every chunk of a stream begins with."""
    return {
        "id": f"{prefix}-{accepted.id}",
        "object": kind,
        "created": int(accepted.created_unix),
        "model": front.model_name,
        "system_fingerprint": f"fp_{front.tokenizer.hash[:12]}",
    }


def check_not_cancelled(result: Result) -> Result:
    """Pass a result on; these APIs have no word for one that somebody cancelled.

    Raises:
        Cancelled: it was.
    """
    if result.finish_reason == "cancelled":
        raise Cancelled("the request was cancelled")
    return result


class ChunkRenderer:
    """Writes events as OpenAI chunks; the subclass says what a choice looks like."""

    ends_at_reset = True
    is_quiet = True

    def __init__(self, head: dict[str, Any], options: StreamOptions | None, num_prompt_tokens: int) -> None:
        options = options or StreamOptions()
        self._with_usage = bool(options.include_usage)
        self._counts_usage = bool(options.continuous_usage_stats)
        # Where usage comes in a chunk of its own, all others say that they have none.
        self._head = {**head, "usage": None} if self._with_usage else head
        self._num_prompt_tokens, self._num_answer_tokens = num_prompt_tokens, 0
        self._is_open = False
        self._num_sent = 0  # characters of the answer

    def opening(self) -> dict[str, Any] | None:
        """Return the choice that stands before the first text, if this API has one."""
        raise NotImplementedError

    def choice(self, text: str | None, finish_reason: str | None) -> dict[str, Any]:
        """Return one choice; `text` is None in the last."""
        raise NotImplementedError

    def tokens(self, records: tuple[TokenRecord, ...]) -> bytes:
        opening = self._open()
        self._num_answer_tokens = records[-1].index + 1
        return opening + self._text("".join(record.text for record in records))

    def reset(self) -> bytes:
        return self.error(ServiceError("tokens that were shown are lost from the log; ask again"))

    def done(self, result: Result) -> bytes:
        if result.finish_reason == "cancelled":
            return self.error(Cancelled("the request was cancelled"))
        frames = [self._open()]
        self._num_answer_tokens = result.usage.completion_tokens
        frames.append(self._text(result.text[self._num_sent :]))
        frames.append(self._chunk(self.choice(None, result.finish_reason)))
        if self._with_usage:
            frames.append(data_frame(to_json({**self._head, "choices": [], "usage": usage_of(result)})))
        return b"".join(frames) + DONE_FRAME

    def error(self, error: ServiceError) -> bytes:
        return data_frame(to_json(body_of(error)))

    def _open(self) -> bytes:
        choice = None if self._is_open else self.opening()
        self._is_open = True
        return b"" if choice is None else self._chunk(choice)

    def _text(self, text: str) -> bytes:
        self._num_sent += len(text)
        return self._chunk(self.choice(text, None)) if text else b""

    def _chunk(self, choice: dict[str, Any]) -> bytes:
        counted = {}
        if self._counts_usage:
            counted = {"usage": count_usage(self._num_prompt_tokens, self._num_answer_tokens)}
        return data_frame(to_json({**self._head, **counted, "choices": [choice]}))


def check_stream_options(body: OpenAIFields) -> None:
    """Refuse options of a stream that was not asked for.

    Raises:
        InvalidRequest: `stream_options` without `stream`.
    """
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest("'stream_options' is for streams: set 'stream' to true", param="stream_options")
