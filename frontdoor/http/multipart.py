"""Reads a form with one file (multipart/form-data), and passes the file on piece by piece.

Fields are short and stay in memory; the file never does. Knows nothing of what the fields mean.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from fastapi import Request
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect

from frontdoor.http.bodies import BODY_TIMEOUT_SECONDS
from frontdoor.http.errors import BodyTooLarge, BodyTooSlow, InvalidRequest, UnsupportedMediaType
from frontdoor.http.scope import header

MAX_FIELD_BYTES = 4096
MAX_FIELDS = 32
MAX_HEADER_BYTES = 4096
PIECE_BYTES = 1 << 20


@dataclass
class Form:
    """What has arrived. `filename`: None while no file has come."""

    fields: dict[str, str] = field(default_factory=dict)
    filename: str | None = None


async def read_form(
    http: Request, file_field: str, on_piece: Callable[[bytes], Awaitable[None]], *, max_bytes: int
) -> Form:
    """Read a form; a piece of the file goes to `on_piece` as it comes.

    Args:
        max_bytes: of the file.

    Raises:
        InvalidRequest, UnsupportedMediaType, BodyTooLarge, BodyTooSlow: answered by the error handler.
        ClientDisconnect: the client has left.
    """
    kind, options = parse_options_header(header(http.scope, b"content-type") or "")
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise UnsupportedMediaType("the body must be multipart/form-data (curl: -F purpose=… -F file=@…)")
    reader = _Reader(file_field)
    parser = MultipartParser(options[b"boundary"], reader.callbacks())  # type: ignore[arg-type]
    num_bytes, has_more = 0, True
    try:
        while has_more:
            chunk, has_more = await _receive(http)
            parser.write(chunk)
            num_bytes += reader.take_count()
            if num_bytes > max_bytes:
                raise BodyTooLarge(f"the file is larger than MAX_FILE_MB={max_bytes >> 20}")
            if len(reader.piece) >= PIECE_BYTES or not has_more:
                piece, reader.piece = bytes(reader.piece), bytearray()
                await on_piece(piece)
        parser.finalize()
    except MultipartParseError as error:
        raise InvalidRequest(f"the form cannot be read: {error}") from None
    if not reader.has_ended:
        raise InvalidRequest("the form ends before its last boundary")
    return reader.form


async def _receive(http: Request) -> tuple[bytes, bool]:
    try:
        async with asyncio.timeout(BODY_TIMEOUT_SECONDS):
            message = await http.receive()
    except TimeoutError:
        raise BodyTooSlow(f"nothing of the body arrived for {BODY_TIMEOUT_SECONDS:g} s") from None
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    return message.get("body", b""), message.get("more_body", False)


class _Reader:
    """Sorts what the parser finds into fields and the file."""

    def __init__(self, file_field: str) -> None:
        self._file_field = file_field
        self.form = Form()
        self.piece = bytearray()
        self.has_ended = False
        self._num_new = 0
        self._name, self._is_file = "", False
        self._value = bytearray()
        self._header, self._headers = [bytearray(), bytearray()], dict[bytes, bytes]()

    def callbacks(self) -> dict[str, Callable[..., None]]:
        return {
            "on_part_begin": self._begin_part,
            "on_header_field": lambda data, start, end: self._add_header(0, data[start:end]),
            "on_header_value": lambda data, start, end: self._add_header(1, data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers,
            "on_part_data": self._add_data,
            "on_part_end": self._end_part,
            "on_end": self._end,
        }

    def take_count(self) -> int:
        """Return the new bytes of the file since the last call."""
        count, self._num_new = self._num_new, 0
        return count

    def _begin_part(self) -> None:
        self._headers.clear()
        self._value.clear()

    def _add_header(self, part: int, data: bytes) -> None:
        self._header[part] += data
        if len(self._header[part]) > MAX_HEADER_BYTES:
            raise InvalidRequest("a part of the form has a too long header")

    def _end_header(self) -> None:
        name, value = self._header
        self._headers[bytes(name).lower()] = bytes(value)
        self._header = [bytearray(), bytearray()]

    def _end_headers(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        self._name = options.get(b"name", b"").decode(errors="replace")
        self._is_file = self._name == self._file_field and b"filename" in options
        if self._is_file:
            if self.form.filename is not None:
                raise InvalidRequest("the form has several files", param=self._file_field)
            self.form.filename = options[b"filename"].decode(errors="replace")
        elif not self._name or self._name in self.form.fields or len(self.form.fields) >= MAX_FIELDS:
            raise InvalidRequest("the form has a field without a name, twice, or too many fields")

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        if self._is_file:
            self.piece += data[start:end]
            self._num_new += end - start
            return
        self._value += data[start:end]
        if len(self._value) > MAX_FIELD_BYTES:
            raise InvalidRequest(
                f"the field {self._name[:100]!r} is longer than {MAX_FIELD_BYTES} bytes",
                param=self._name[:100],
            )

    def _end_part(self) -> None:
        if not self._is_file:
            self.form.fields[self._name] = self._value.decode(errors="replace")

    def _end(self) -> None:
        self.has_ended = True
