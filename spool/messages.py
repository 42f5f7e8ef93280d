"""Request and Result: what was asked and what came of it, and how they lie on disk.

A file is one line of ASCII JSON whose head has a fixed shape, so that the checksum covers the body's very
bytes:

    {"version":1,"kind":"request","crc32":"0123abcd","body":{…}}

Reading is strict: another version or kind, a wrong checksum, an unknown field or a field of the wrong type
raises CorruptRequest. A field that is missing takes its default, so a later release may add fields that
have one; one that an earlier release wrote and never used is skipped. pydantic reads and writes the bodies,
in less time than json and checks of our own would. This room knows nothing of folders, and whether a value
makes sense for a model (limits, context) is the front door's business.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import pydantic_core
from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from spool.errors import CorruptRequest
from spool.names import check_id

VERSION = 1
T = TypeVar("T")
_RETIRED_FIELDS = (b'"deadline_unix":',)
_SANE_CLIENT_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, ser_json_inf_nan="constants")
FinishReason = Literal["stop", "length", "cancelled", "error"]
FINISH_REASONS: tuple[FinishReason, ...] = ("stop", "length", "cancelled", "error")
_FILE = re.compile(
    rb'\{"version":([0-9]{1,9}),"kind":"([a-z]+)","crc32":"([0-9a-f]{8})","body":(.*)\}\n', re.DOTALL
)


@with_config(_STRICT)
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


@with_config(_STRICT)
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
        """The file's content. Raises ValueError for what JSON cannot hold (NaN, half a surrogate pair)."""
        return _REQUESTS.write(self)

    @classmethod
    def from_json(cls, data: bytes) -> Request:
        """Read what `to_json` made. Raises CorruptRequest."""
        return _REQUESTS.read(data)


@with_config(_STRICT)
@dataclass(frozen=True)
class Usage:
    """What an answer cost, in tokens."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


@with_config(_STRICT)
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
        """The file's content. Raises ValueError for what JSON cannot hold (NaN, half a surrogate pair)."""
        return _RESULTS.write(self)

    @classmethod
    def from_json(cls, data: bytes) -> Result:
        """Read what `to_json` made. Raises CorruptRequest."""
        return _RESULTS.read(data)


def seal(kind: str, body: dict[str, Any]) -> bytes:
    """A file's content. Raises ValueError for what JSON cannot hold."""
    return _wrap(kind, pydantic_core.to_json(body, ensure_ascii=True))


def unseal(kind: str, data: bytes) -> dict[str, Any]:
    """The body of a file that `seal` made. Raises CorruptRequest."""
    try:
        body = pydantic_core.from_json(_unwrap(kind, data), allow_inf_nan=False)
    except ValueError as error:
        raise CorruptRequest(f"{kind} file that is not JSON") from error
    if not isinstance(body, dict):
        raise CorruptRequest(f"{kind} file without an object")
    return body


class _Form(Generic[T]):
    """How one kind of message is written and read."""

    def __init__(self, kind: str, message: type[T]) -> None:
        self._kind, self._name = kind, message.__name__
        self._adapter = TypeAdapter(message)

    def write(self, message: T) -> bytes:
        return _wrap(self._kind, self._adapter.dump_json(message, ensure_ascii=True, warnings=False))

    def read(self, data: bytes) -> T:
        inner = _unwrap(self._kind, data)
        try:
            for retired in _RETIRED_FIELDS:
                if retired in inner:
                    inner = _without_retired(inner)
            return self._adapter.validate_json(inner)
        except ValidationError as error:  # its own text would have the prompt in it
            problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
            field = ".".join(map(str, problem["loc"]))
            raise CorruptRequest(f"{self._name} file: {field or 'body'}: {problem['msg']}") from None
        except ValueError as error:
            raise CorruptRequest(f"{self._name} file that is not JSON") from error


def _without_retired(inner: bytes) -> bytes:
    """The body without the fields that nobody uses any more. Raises ValueError."""
    body = pydantic_core.from_json(inner, allow_inf_nan=False)
    for field in _RETIRED_FIELDS if isinstance(body, dict) else ():
        body.pop(field.decode().strip('":'), None)
    return pydantic_core.to_json(body, ensure_ascii=True)


def _wrap(kind: str, inner: bytes) -> bytes:
    if b"NaN" in inner or b"Infinity" in inner:  # a number, or only a word of a text
        _check_numbers(inner)
    return b'{"version":%d,"kind":"%s","crc32":"%08x","body":%s}\n' % (
        VERSION,
        kind.encode(),
        zlib.crc32(inner),
        inner,
    )


def _check_numbers(inner: bytes) -> None:
    try:
        pydantic_core.from_json(inner, allow_inf_nan=False)
    except ValueError as error:
        raise ValueError("a number that JSON cannot hold") from error


def _unwrap(kind: str, data: bytes) -> bytes:
    match = _FILE.fullmatch(data)
    if match is None:
        raise CorruptRequest(f"not a {kind} file")
    if int(match[1]) != VERSION:
        raise CorruptRequest(f"{kind} file of version {int(match[1])}; this program reads version {VERSION}")
    if match[2].decode() != kind or int(match[3], 16) != zlib.crc32(match[4]):
        raise CorruptRequest(f"{kind} file whose checksum is wrong")
    return match[4]


_REQUESTS = _Form("request", Request)
_RESULTS = _Form("result", Result)
