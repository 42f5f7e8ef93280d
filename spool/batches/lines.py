"""Reads the lines of a batch's input, and checks each before the first one runs.

A line is {"custom_id", "method": "POST", "url", "body"}; blank lines are skipped. The checks look at the
line's own members, at `stream` and at the model's name: a body is checked when its line runs. Knows no
endpoint by name, and nothing of HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from spool.errors import system_trouble
from spool.fsio import FileSystem, NotPlainFile

CHUNK_BYTES = 1 << 20
MAX_CUSTOM_ID_CHARACTERS = 512
_MEMBERS = ("custom_id", "method", "url", "body")
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class RawLine:
    """One line. number: from 1, blank lines count; text: None where it is too long; is_whole: it ended."""

    number: int
    offset: int
    num_bytes: int
    text: bytes | None
    is_whole: bool = True


class LineError(msgspec.Struct, frozen=True):
    """Why a line, or with line None a whole file, cannot be run."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None


class BatchLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A checked line."""

    custom_id: str
    method: str
    url: str
    body: msgspec.Raw

    @classmethod
    def from_json(cls, text: bytes) -> BatchLine:
        """Read a checked line. Raises msgspec.MsgspecError."""
        return _LINES.decode(text.removeprefix(_BOM))


def scan_lines(
    fs: FileSystem, path: Path, max_line_bytes: int, *, skips_blank: bool = True
) -> Iterator[RawLine]:
    """Yield the lines of a file; a missing file has none. Holds one line in memory.

    Raises:
        SpoolUnavailable: the disk refused to read.
    """
    number = at = start = num_bytes = 0
    held = bytearray()
    while part := _read_part(fs, path, at):
        at += len(part)
        *ends, last = part.split(b"\n")
        for piece in ends:
            num_bytes += len(piece)
            held += piece if num_bytes <= max_line_bytes else b""
            number += 1
            if num_bytes > max_line_bytes or held.strip() or not skips_blank:
                yield RawLine(number, start, num_bytes, _held(held, num_bytes))
            start, num_bytes = start + num_bytes + 1, 0
            held.clear()
        num_bytes += len(last)
        held += last if num_bytes <= max_line_bytes else b""
    if num_bytes and (len(held) < num_bytes or held.strip() or not skips_blank):
        yield RawLine(number + 1, start, num_bytes, _held(held, num_bytes), is_whole=False)


def _held(held: bytearray, num_bytes: int) -> bytes | None:
    return bytes(held) if len(held) == num_bytes else None


def _read_part(fs: FileSystem, path: Path, offset: int) -> bytes:
    with system_trouble("read a batch's lines"):
        try:
            return fs.read_part(path, offset, CHUNK_BYTES)
        except (FileNotFoundError, NotPlainFile):
            return b""


class LineChecker:
    """Checks the lines of one input in order."""

    def __init__(
        self, endpoint: str, max_line_bytes: int, is_served: Callable[[str | None], bool] = lambda _: True
    ) -> None:
        """Args: is_served: whether a model of this name is served."""
        self._endpoint, self._max_line_bytes, self._is_served = endpoint, max_line_bytes, is_served
        self._custom_ids: dict[str, int] = {}

    def check(self, raw: RawLine) -> LineError | None:
        """Return what is wrong with a line, the first problem only."""
        if raw.text is None:
            limit = f"the line is longer than MAX_BODY_BYTES={self._max_line_bytes}"
            return LineError("line_too_long", limit, None, raw.number)
        found = self._look(raw)
        return None if found is None else msgspec.structs.replace(found, line=raw.number)

    def _look(self, raw: RawLine) -> LineError | None:
        try:
            members = _OBJECTS.decode((raw.text or b"").removeprefix(_BOM))
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return LineError("invalid_json_line", "the line is not a JSON object")
        missing = [name for name in _MEMBERS if name not in members]
        if missing:
            return LineError("missing_required_parameter", f"{missing[0]!r} is required", missing[0])
        unknown = [name for name in members if name not in _MEMBERS]
        if unknown:
            return LineError("unknown_parameter", f"unknown member {unknown[0][:100]!r}", unknown[0][:100])
        return (
            self._check_id(raw, members["custom_id"]) or self._check_way(members) or self._check_body(members)
        )

    def _check_id(self, raw: RawLine, value: msgspec.Raw) -> LineError | None:
        custom_id = _decode(value)
        if not isinstance(custom_id, str) or not 0 < len(custom_id) <= MAX_CUSTOM_ID_CHARACTERS:
            message = f"'custom_id' must be a string of 1 to {MAX_CUSTOM_ID_CHARACTERS} characters"
            return LineError("invalid_custom_id", message, "custom_id")
        first = self._custom_ids.setdefault(custom_id, raw.number)
        if first != raw.number:
            message = f"line {first} has the same 'custom_id'"
            return LineError("duplicate_custom_id", message, "custom_id")
        return None

    def _check_way(self, members: dict[str, msgspec.Raw]) -> LineError | None:
        if _decode(members["method"]) != "POST":
            return LineError("invalid_method", "'method' must be POST", "method")
        if _decode(members["url"]) != self._endpoint:
            message = f"'url' must be the batch's endpoint, {self._endpoint}"
            return LineError("invalid_url", message, "url")
        return None

    def _check_body(self, members: dict[str, msgspec.Raw]) -> LineError | None:
        try:
            body = _BODIES.decode(members["body"])
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return LineError("invalid_body", "'body' must be a JSON object", "body")
        if body.stream not in (None, False):
            return LineError("invalid_stream", "a line of a batch cannot stream", "body.stream")
        if not isinstance(body.model, str | None) or not self._is_served(body.model):
            return LineError("model_not_found", "this server does not serve the line's model", "body.model")
        return None


class _Body(msgspec.Struct):
    """What the checks need of a body."""

    stream: Any = None
    model: Any = None


def _decode(value: msgspec.Raw) -> object:
    return msgspec.json.decode(value)


_LINES = msgspec.json.Decoder(BatchLine)
_OBJECTS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_BODIES = msgspec.json.Decoder(_Body)
