"""Request and Result: what was asked and what came of it, and how they lie on disk.

A file is one line of JSON whose checksum is of the body's very bytes:

    {"version":1,"kind":"request","crc32":"0123abcd","body":{…}}

Reading is strict: another version or kind, a wrong checksum, an unknown field or a field of the wrong type
raises CorruptRequest. A field that is missing takes its default, so a later release may add fields that
have one; one that an earlier release wrote and never used is skipped. msgspec reads and writes them: a
third of pydantic's time after a pause, when all that is touched has to come from memory first. This room
knows nothing of folders, and whether a value makes sense for a model (limits, context) is the front door's
business.
"""

from __future__ import annotations

import math
import re
import zlib
from typing import Any, Literal, TypeVar

import msgspec

from spool.errors import CorruptRequest
from spool.names import check_id

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
    """What all that lies in a file has in common."""


class SamplingParams(_Message, frozen=True):
    """How to draw tokens. temperature 0 is greedy; choice tells the n answers to one prompt apart.

    With ignore_eos only max_tokens and stop end the answer, no token of the model's own. seed: any int64.
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


class Request(_Message, frozen=True):
    """One question. text or token_ids is there; token_ids count only with the tokenizer_hash they are of.

    With is_chat, text is a user's message that rank 0 puts into the chat template; else it is final. literals
    is set for a rendered chat: the offsets in text with which a control token would begin that is only text.
    received_unix is when the client's bytes came (0: by no client), created_unix is just before submit.
    client_id is what the client calls the request (X-Request-Id), for logs only.
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
    def label(self) -> str:
        """Its id and, where the client has one of its own, that: what stands in logs."""
        is_known = self.client_id != self.id and is_sane_client_id(self.client_id)
        return f"{self.id} ({self.client_id})" if is_known else self.id

    def __post_init__(self) -> None:
        check_id(self.id)
        if not 0 <= self.priority <= 9:
            raise ValueError("priority is 0 (first) to 9")
        if self.text is None and self.token_ids is None:
            raise ValueError("a request has text or token_ids")

    def to_json(self) -> bytes:
        """The file's content. Raises ValueError for what JSON cannot hold (NaN, half a surrogate pair)."""
        params = self.params
        numbers = self.created_unix, self.received_unix, params.temperature, params.top_p, params.min_p
        if not all(map(math.isfinite, numbers)):
            raise ValueError("a number that JSON cannot hold")
        return _wrap("request", self)

    @classmethod
    def from_json(cls, data: bytes) -> Request:
        """Read what `to_json` made. Raises CorruptRequest."""
        return _read("request", data, _REQUESTS)


class Usage(_Message, frozen=True):
    """What an answer cost, in tokens."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


class Result(_Message, frozen=True):
    """The one end of a request. error is {"code", "message", "status"} with finish_reason "error".

    owner and seed are the request's, for who may fetch it and for running it again.
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

    def __post_init__(self) -> None:
        check_id(self.id)
        if self.finish_reason not in FINISH_REASONS:
            raise ValueError(f"finish_reason is one of {', '.join(FINISH_REASONS)}")

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
        """An answer that is an error."""
        error = {"code": code, "message": message, "status": status}
        return cls(id, model, "", (), "error", Usage(), {}, error, finished_unix, owner, seed)

    def to_json(self) -> bytes:
        """The file's content; a figure that is no number becomes null. Raises ValueError (half a surrogate
        pair).
        """
        return _wrap("result", self)

    @classmethod
    def from_json(cls, data: bytes) -> Result:
        """Read what `to_json` made. Raises CorruptRequest."""
        return _read("result", data, _RESULTS)


def seal(kind: str, body: dict[str, Any]) -> bytes:
    """A file's content. Raises ValueError for what JSON cannot hold (half a surrogate pair)."""
    return _wrap(kind, body)


def unseal(kind: str, data: bytes) -> dict[str, Any]:
    """The body of a file that `seal` made. Raises CorruptRequest."""
    return _read(kind, data, _OBJECTS)


class _Envelope(msgspec.Struct, forbid_unknown_fields=True):
    """What lies around a body."""

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
        raise CorruptRequest(f"not a whole {kind} file")
    try:
        envelope = _ENVELOPES.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise CorruptRequest(f"not a {kind} file") from error
    if envelope.version != VERSION:
        raise CorruptRequest(f"{kind} file of version {envelope.version}; this program reads {VERSION}")
    inner = memoryview(envelope.body)
    if envelope.kind != kind or envelope.crc32 != f"{zlib.crc32(inner):08x}":
        raise CorruptRequest(f"{kind} file whose checksum is wrong")
    try:
        if any(retired in data for retired in _RETIRED_FIELDS):
            return decoder.decode(_without_retired(inner))
        return decoder.decode(inner)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise CorruptRequest(f"{kind} file: {error}") from None


def _without_retired(inner: memoryview) -> bytes:
    """The body without the fields that nobody uses any more. Raises what msgspec does."""
    body = _OBJECTS.decode(inner)
    for field in _RETIRED_FIELDS:
        body.pop(field.decode().strip('":'), None)
    return _ENCODER.encode(body)


_ENCODER = msgspec.json.Encoder()
_ENVELOPES = msgspec.json.Decoder(_Envelope)
_OBJECTS = msgspec.json.Decoder(dict[str, Any])
_REQUESTS = msgspec.json.Decoder(Request)
_RESULTS = msgspec.json.Decoder(Result)
