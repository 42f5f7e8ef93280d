"""Request and Result: the question and its one answer, and their format on disk.

A file is one line of JSON; the checksum covers the body's bytes:

    {"version":1,"kind":"request","crc32":"0123abcd","body":{…}}

Reading is strict: another version or kind, a wrong checksum, an unknown field or a wrong type raises
CorruptRequest. A missing field takes its default, so a later release may add fields that have one. Fields
that an earlier release wrote and no release used are skipped. msgspec reads and writes the files, because it
is faster than pydantic. Knows nothing of folders; the front door checks values against the model's limits.
"""

from __future__ import annotations

import math
import re
import zlib
from typing import Any, Literal, TypeVar

import msgspec

from spool.errors import CorruptRequest
from spool.names import LAST_PRIORITY, check_id

VERSION = 1
T = TypeVar("T")
_RETIRED_FIELDS = (b'"deadline_unix":', b'"forced_token_ids":')
_SANE_CLIENT_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
FinishReason = Literal["stop", "length", "cancelled", "error"]
FINISH_REASONS: tuple[FinishReason, ...] = ("stop", "length", "cancelled", "error")


def is_sane_client_id(text: str) -> bool:
    """Whether a client's own id may stand in logs and headers."""
    return _SANE_CLIENT_ID.fullmatch(text) is not None


class _Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A structure that is stored in a file."""


class SamplingParams(_Message, frozen=True, omit_defaults=True):
    """How to sample tokens. temperature 0 is greedy; choice numbers the n answers to one prompt.

    With ignore_eos only max_tokens and stop end the answer, not the model's end tokens. seed: any int64.
    frequency_penalty and presence_penalty count the answer's tokens, repetition_penalty the prompt's as well.
    logit_bias: by token id, added to its logit. logprobs: how many alternatives to report for each token of
    the answer besides its own (0: only its own; None: report nothing); prompt_logprobs: the same for the
    prompt. grammar: the answer must match it, as Lark or JSON of llguidance. shows_special: special tokens
    other than end tokens are part of the text, because the format of tool calls or reasoning needs them.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    stop: tuple[str, ...] = ()
    seed: int = 0
    choice: int = 0
    ignore_eos: bool = False
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    grammar: str | None = None
    shows_special: bool = False


class Request(_Message, frozen=True):
    """One question. It has text or token_ids; token_ids are valid only with the same tokenizer_hash.

    With is_chat, text is a user's message, and rank 0 applies the chat template; otherwise text is final.
    literals is set for a rendered chat: the offsets in text at which plain text looks like a control token.
    received_unix is the arrival of the client's first bytes (0: no client), created_unix is just before
    submit. client_id is the client's own id (X-Request-Id), for logs only.
    """

    id: str
    params: SamplingParams
    text: str | None
    token_ids: tuple[int, ...] | None
    tokenizer_hash: str | None
    model: str
    owner: str = ""
    priority: int = 5
    created_unix: float = 0.0
    received_unix: float = 0.0
    is_chat: bool = False
    client_id: str = ""
    literals: tuple[int, ...] | None = None

    @property
    def yields(self) -> bool:
        """Whether it gives its row to requests of a higher class."""
        return self.priority == LAST_PRIORITY

    @property
    def label(self) -> str:
        """The id for logs, with the client's own id where it has one."""
        is_known = self.client_id != self.id and is_sane_client_id(self.client_id)
        return f"{self.id} ({self.client_id})" if is_known else self.id

    def __post_init__(self) -> None:
        check_id(self.id)
        if not 0 <= self.priority <= LAST_PRIORITY:
            raise ValueError(f"priority is {self.priority}; allowed: 0 (first) to {LAST_PRIORITY}")
        if self.text is None and self.token_ids is None:
            raise ValueError("a request needs text or token_ids")

    def to_json(self) -> bytes:
        """Return the file's content. Raises ValueError for NaN and half a surrogate pair."""
        if not all(map(math.isfinite, (self.created_unix, self.received_unix, *_floats(self.params)))):
            raise ValueError("JSON cannot hold NaN or infinity")
        return _wrap("request", self)

    @classmethod
    def from_json(cls, data: bytes) -> Request:
        """Read what `to_json` made. Raises CorruptRequest."""
        return _read("request", data, _REQUESTS)


def _floats(params: SamplingParams) -> tuple[float, ...]:
    penalties = params.frequency_penalty, params.presence_penalty, params.repetition_penalty
    return (params.temperature, params.top_p, params.min_p, *penalties, *params.logit_bias.values())


class TokenLogprob(_Message, frozen=True, array_like=True):
    """The natural logarithm of a token's probability before penalties, bias, grammar and temperature.

    None stands for minus infinity, and for the first token of a prompt. alternatives: the likeliest tokens
    and theirs, best first.
    """

    token_id: int
    logprob: float | None
    alternatives: tuple[tuple[int, float | None], ...] = ()


class Usage(_Message, frozen=True):
    """The tokens of a prompt and its answer."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


class Result(_Message, frozen=True):
    """The one answer to a request. With finish_reason "error", error is {"code", "message", "status"}.

    owner and seed are the request's: they decide who may fetch the result, and let it be replayed. logprobs
    and prompt_logprobs have one entry for each token of the answer and of the prompt, where the request
    asks for them.
    """

    id: str
    model: str
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    usage: Usage
    performance: dict[str, Any]
    error: dict[str, Any] | None
    finished_unix: float
    owner: str = ""
    seed: int | None = None
    logprobs: tuple[TokenLogprob, ...] | None = None
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None

    def __post_init__(self) -> None:
        check_id(self.id)
        if self.finish_reason not in FINISH_REASONS:
            raise ValueError(f"finish_reason is {self.finish_reason!r}; allowed: {', '.join(FINISH_REASONS)}")

    @classmethod
    def failed(
        cls,
        id: str,
        *,
        model: str,
        code: str,
        message: str,
        status: int = 500,
        finished_unix: float,
        owner: str = "",
        seed: int | None = None,
    ) -> Result:
        """Make a result that is an error."""
        error = {"code": code, "message": message, "status": status}
        return cls(id, model, "", (), "error", Usage(), {}, error, finished_unix, owner, seed)

    def to_json(self) -> bytes:
        """Return the file's content; NaN becomes null. Raises ValueError for half a surrogate pair."""
        return _wrap("result", self)

    @classmethod
    def from_json(cls, data: bytes) -> Result:
        """Read what `to_json` made. Raises CorruptRequest."""
        return _read("result", data, _RESULTS)


def seal(kind: str, body: dict[str, Any]) -> bytes:
    """Return a file's content. Raises ValueError for half a surrogate pair."""
    return _wrap(kind, body)


def unseal(kind: str, data: bytes) -> dict[str, Any]:
    """Return the body of a file that `seal` made. Raises CorruptRequest."""
    return _read(kind, data, _OBJECTS)


class _Envelope(msgspec.Struct, forbid_unknown_fields=True):
    """The members around a body."""

    version: int
    kind: str
    crc32: str
    body: msgspec.Raw


def _wrap(kind: str, body: Any) -> bytes:
    inner = _ENCODER.encode(body)
    return b'{"version":%d,"kind":"%s","crc32":"%08x","body":%s}\n' % (
        VERSION,
        kind.encode(),
        zlib.crc32(inner),
        inner,
    )


def _read(kind: str, data: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    if not data.endswith(b"}\n"):
        raise CorruptRequest(f"the {kind} file is incomplete")
    try:
        envelope = _ENVELOPES.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise CorruptRequest(f"the file is not a {kind} file") from error
    if envelope.version != VERSION:
        raise CorruptRequest(
            f"the {kind} file has version {envelope.version}; this program reads version {VERSION}"
        )
    inner = memoryview(envelope.body)
    if envelope.kind != kind or envelope.crc32 != f"{zlib.crc32(inner):08x}":
        raise CorruptRequest(f"the {kind} file has a wrong kind or checksum")
    try:
        if any(retired in data for retired in _RETIRED_FIELDS):
            return decoder.decode(_without_retired(inner))
        return decoder.decode(inner)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise CorruptRequest(f"the {kind} file has a wrong field: {error}") from None


def _without_retired(inner: memoryview) -> bytes:
    """Return the body without retired fields. Raises msgspec's errors."""
    body = _OBJECTS.decode(inner)
    for field in _RETIRED_FIELDS:
        body.pop(field.decode().strip('":'), None)
    return _ENCODER.encode(body)


_ENCODER = msgspec.json.Encoder()
_ENVELOPES = msgspec.json.Decoder(_Envelope)
_OBJECTS = msgspec.json.Decoder(dict[str, Any])
_REQUESTS = msgspec.json.Decoder(Request)
_RESULTS = msgspec.json.Decoder(Result)
