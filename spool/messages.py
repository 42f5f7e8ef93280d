"""Request and Result: what was asked and what came of it, and how they lie on disk.

A file is one line of ASCII JSON whose head has a fixed shape, so that the checksum covers the body's very
bytes:

    {"version":1,"kind":"request","crc32":"0123abcd","body":{…}}

Reading is strict: another version or kind, a wrong checksum, an unknown field or a field of the wrong type
raises CorruptRequest. A field that is missing takes its default, so a later release may add fields that
have one; one that an earlier release wrote and never used is skipped. This room knows nothing of folders,
and whether a value makes sense for a model (limits, context) is the front door's business.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar

from spool.errors import CorruptRequest
from spool.names import check_id

VERSION = 1
T = TypeVar("T")
_RETIRED_FIELDS = frozenset({"deadline_unix"})
_SANE_CLIENT_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False)
FinishReason = Literal["stop", "length", "cancelled", "error"]
FINISH_REASONS: tuple[FinishReason, ...] = ("stop", "length", "cancelled", "error")
_FILE = re.compile(
    rb'\{"version":([0-9]{1,9}),"kind":"([a-z]+)","crc32":"([0-9a-f]{8})","body":(.*)\}\n', re.DOTALL
)


@dataclass(frozen=True)
class SamplingParams:
    """How to draw tokens. temperature 0 is greedy; choice tells the n answers to one prompt apart."""

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    stop: tuple[str, ...] = ()
    seed: int = 0
    choice: int = 0

    def to_body(self) -> dict[str, Any]:
        """A JSON object of all fields."""
        return {**vars(self), "stop": list(self.stop)}

    @classmethod
    def from_body(cls, body: Any) -> SamplingParams:
        """Read what `to_body` made. Raises CorruptRequest."""
        return _make(
            cls,
            body,
            {
                "max_tokens": _integer,
                "temperature": _number,
                "top_p": _number,
                "top_k": _integer,
                "min_p": _number,
                "stop": _texts,
                "seed": _integer,
                "choice": _integer,
            },
        )


@dataclass(frozen=True)
class Request:
    """One question. text or token_ids is there; token_ids count only with the tokenizer_hash they are of.

    With is_chat, text is a user's message that rank 0 puts into the chat template; else it is final.
    received_unix is when the client's bytes came (0: by no client), created_unix is just before submit.
    client_id is what the client calls the request (X-Request-Id), for logs only. forced_token_ids is the
    answer, whatever the model would say: for measuring (`bench`); no HTTP route sets it.
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
    forced_token_ids: tuple[int, ...] | None = None

    @property
    def label(self) -> str:
        """Its id and, where the client has one of its own, that: what stands in logs."""
        is_known = self.client_id != self.id and _SANE_CLIENT_ID.fullmatch(self.client_id)
        return f"{self.id} ({self.client_id})" if is_known else self.id

    def __post_init__(self) -> None:
        check_id(self.id)
        if not 0 <= self.priority <= 9:
            raise ValueError("priority is 0 (first) to 9")
        if self.text is None and self.token_ids is None:
            raise ValueError("a request has text or token_ids")

    def to_json(self) -> bytes:
        """The file's content. Raises ValueError for a number that JSON cannot hold (NaN)."""
        lists = {name: _as_list(getattr(self, name)) for name in ("token_ids", "forced_token_ids")}
        return seal("request", {**vars(self), "params": self.params.to_body(), **lists})

    @classmethod
    def from_json(cls, data: bytes) -> Request:
        """Read what `to_json` made. Raises CorruptRequest."""
        body = {name: value for name, value in unseal("request", data).items() if name not in _RETIRED_FIELDS}
        return _make(
            cls,
            body,
            {
                "id": _text,
                "params": SamplingParams.from_body,
                "text": _text_or_none,
                "token_ids": _integers_or_none,
                "tokenizer_hash": _text_or_none,
                "model": _text,
                "owner": _text,
                "priority": _integer,
                "created_unix": _number,
                "received_unix": _number,
                "is_chat": _flag,
                "client_id": _text,
                "forced_token_ids": _integers_or_none,
            },
        )


@dataclass(frozen=True)
class Usage:
    """What an answer cost, in tokens."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0

    @classmethod
    def from_body(cls, body: Any) -> Usage:
        """Read a JSON object of all fields. Raises CorruptRequest."""
        return _make(cls, body, {name.name: _integer for name in fields(cls)})


@dataclass(frozen=True)
class Result:
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
        """The file's content. Raises ValueError for a number that JSON cannot hold (NaN)."""
        body = {**vars(self), "token_ids": list(self.token_ids), "usage": vars(self.usage)}
        return seal("result", body)

    @classmethod
    def from_json(cls, data: bytes) -> Result:
        """Read what `to_json` made. Raises CorruptRequest."""
        return _make(
            cls,
            unseal("result", data),
            {
                "id": _text,
                "model": _text,
                "text": _text,
                "token_ids": _integers,
                "finish_reason": _text,
                "usage": Usage.from_body,
                "performance": _object,
                "error": _error_or_none,
                "finished_unix": _number,
                "owner": _text,
                "seed": _integer_or_none,
            },
        )


def seal(kind: str, body: dict[str, Any]) -> bytes:
    """A file's content. Raises ValueError for a number that JSON cannot hold (NaN)."""
    inner = _ENCODER.encode(body).encode("ascii")
    return b'{"version":%d,"kind":"%s","crc32":"%08x","body":%s}\n' % (
        VERSION,
        kind.encode(),
        zlib.crc32(inner),
        inner,
    )


def unseal(kind: str, data: bytes) -> dict[str, Any]:
    """The body of a file that `seal` made. Raises CorruptRequest."""
    match = _FILE.fullmatch(data)
    if match is None:
        raise CorruptRequest(f"not a {kind} file")
    if int(match[1]) != VERSION:
        raise CorruptRequest(f"{kind} file of version {int(match[1])}; this program reads version {VERSION}")
    if match[2].decode() != kind or int(match[3], 16) != zlib.crc32(match[4]):
        raise CorruptRequest(f"{kind} file whose checksum is wrong")
    try:
        return _object(json.loads(match[4]))
    except (ValueError, RecursionError) as error:
        raise CorruptRequest(f"{kind} file that is not JSON") from error


def _as_list(values: tuple[int, ...] | None) -> list[int] | None:
    return None if values is None else list(values)


def _make(cls: type[T], body: Any, readers: dict[str, Callable[[Any], Any]]) -> T:
    """Build a dataclass from a JSON object, one reader a field."""
    unknown = _object(body).keys() - readers.keys()
    if unknown:
        raise CorruptRequest(f"{cls.__name__} with unknown fields")
    try:
        return cls(**{name: readers[name](value) for name, value in body.items()})
    except (
        TypeError,
        ValueError,
        OverflowError,
    ) as error:  # a field without default is missing, or a rule of the class is broken
        raise CorruptRequest(f"{cls.__name__}: {error}") from error


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else _wrong("an object")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else _wrong("a text")


def _text_or_none(value: Any) -> str | None:
    return None if value is None else _text(value)


def _integer(value: Any) -> int:
    return value if type(value) is int else _wrong("a whole number")


def _integer_or_none(value: Any) -> int | None:
    return None if value is None else _integer(value)


def _flag(value: Any) -> bool:
    return value if isinstance(value, bool) else _wrong("true or false")


def _number(value: Any) -> float:
    return float(value) if type(value) in (int, float) and math.isfinite(value) else _wrong("a number")


def _integers(value: Any) -> tuple[int, ...]:
    items = value if isinstance(value, list) else _wrong("a list")
    return tuple(items) if set(map(type, items)) <= {int} else _wrong("a list of whole numbers")


def _integers_or_none(value: Any) -> tuple[int, ...] | None:
    return None if value is None else _integers(value)


def _texts(value: Any) -> tuple[str, ...]:
    items = value if isinstance(value, list) else _wrong("a list")
    return tuple(_text(item) for item in items)


def _error_or_none(value: Any) -> dict[str, Any] | None:
    return None if value is None else _object(value)


def _wrong(expected: str) -> Any:
    raise CorruptRequest(f"a field is not {expected}")
