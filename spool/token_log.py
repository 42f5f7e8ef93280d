"""The token log: every token of an answer is on disk before a client sees it.

stream/<id> has one line of JSON a token. Rank 0 appends, any number of front doors read:

    {"version":1,"model":"…","weights_hash":"…","tokenizer_hash":"…","crc32":N}   header: the answer's model
    {"index":0,"token_id":42,"text":" Paris","crc32":N}
    {"index":0,"token_id":42,"text":" Paris","logprobs":[42,-0.1,[[42,-0.1]]],"crc32":N}   where asked for

crc32 covers the line's bytes before `,"crc32":`. Readers ignore a last line without a newline. A line that is
damaged or out of order ends the log: rank 0 generates the rest again. Complete lines are removed only by
replacing the whole file, so a reader notices (`LogCut`) that tokens it has returned are gone. The log is not
synced: a power cut may lose its end. Knows nothing of models, folders or requests.
"""

from __future__ import annotations

import contextlib
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from config.disk_trouble import NO_ROOM
from spool.errors import LogCut, SpoolUnavailable
from spool.fsio import AnyPath, FileSystem, FileTail, NotPlainFile
from spool.messages import TokenLogprob

VERSION = 1
_CRC = b',"crc32":'


@dataclass(frozen=True)
class TokenRecord:
    """One token. text is the text that it releases (incomplete UTF-8 and possible stops are held back)."""

    index: int
    token_id: int
    text: str
    logprobs: TokenLogprob | None = None


@dataclass(frozen=True)
class LogHeader:
    """The model and tokenizer of an answer. Another model or tokenizer would give another answer."""

    model: str
    weights_hash: str = ""
    tokenizer_hash: str = ""


@dataclass(frozen=True)
class LoggedTokens:
    """The header and tokens of a log, and the number of its valid bytes."""

    header: LogHeader | None
    records: list[TokenRecord]
    num_good_bytes: int


def encode(record: TokenRecord) -> bytes:
    """Return one line."""
    body = f'{{"index":{record.index},"token_id":{record.token_id},"text":{json.dumps(record.text)}'
    if record.logprobs is None:
        return _seal(body.encode())
    return _seal(b'%s,"logprobs":%s' % (body.encode(), msgspec.json.encode(record.logprobs)))


def encode_header(header: LogHeader) -> bytes:
    """Return the first line."""
    return _seal(json.dumps({"version": VERSION, **vars(header)}, separators=(",", ":"))[:-1].encode())


def parse(data: bytes, *, next_index: int = 0, is_start: bool = True) -> LoggedTokens:
    """Read lines up to the first that is incomplete, damaged or out of order."""
    header: LogHeader | None = None
    records: list[TokenRecord] = []
    good = 0
    for line in data.split(b"\n")[:-1]:
        fields = _open(line)
        if fields is not None and "version" in fields and is_start and good == 0:
            header = _header(fields)
            if header is None:
                break
        else:
            record = _record(fields)
            if record is None or record.index != next_index + len(records):
                break
            records.append(record)
        good += len(line) + 1
    return LoggedTokens(header, records, good)


def read_log(path: AnyPath, fs: FileSystem | None = None) -> LoggedTokens:
    """Read a log's header and valid tokens; empty where the log is missing. Changes nothing."""
    tail = _read_from(fs or FileSystem(), path, 0)
    return parse(tail.data if tail else b"")


class TokenLogWriter:
    """The only writer of a log. Opening it cuts a damaged end off; `resumed` has the remaining tokens."""

    def __init__(
        self, path: AnyPath, fs: FileSystem | None = None, *, header: LogHeader | None = None
    ) -> None:
        """Open or make the log. `header` is for an empty log; `self.header` is the header in the file."""
        self._fs = fs or FileSystem()
        self._path = path
        try:
            logged = self._cut(_read_from(self._fs, path, 0))
            self._fd = self._fs.open_append(path)
        except OSError as error:
            raise SpoolUnavailable.from_os_error("open a token log", error) from error
        self.header = logged.header
        self.resumed = tuple(logged.records)
        self.next_index = len(logged.records)
        self._num_bytes = logged.num_good_bytes
        self._is_torn = False
        if header is not None and self._num_bytes == 0:
            self._write_header(header)

    def append(self, records: list[TokenRecord]) -> None:
        """Append the records of one step with one write(2).

        Records that the log has already are skipped, so a failed append may be repeated unchanged.

        Raises:
            ValueError: an index is missing.
            SpoolUnavailable: the disk is full or failing. Whole lines that were written count.
        """
        fresh = [record for record in records if record.index >= self.next_index]
        for index, record in enumerate(fresh, self.next_index):
            if record.index != index:
                raise ValueError(f"token {index} is missing from the log")
        if not fresh:
            return
        lines = [encode(record) for record in fresh]
        self.next_index += self._append_lines(lines)
        if self.next_index != fresh[-1].index + 1:
            raise SpoolUnavailable(
                "cannot append to a token log: the disk is full", code="disk_full", status=507
            )

    def close(self) -> None:
        """Close the file; the log stays."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):  # the descriptor is closed anyway, and nothing was buffered
                self._fs.close(self._fd)
            self._fd = -1

    def __enter__(self) -> TokenLogWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write_header(self, header: LogHeader) -> None:
        try:
            if not self._append_lines([encode_header(header)]):
                raise SpoolUnavailable(
                    "cannot begin a token log: the disk is full", code="disk_full", status=507
                )
        except SpoolUnavailable:
            self.close()
            raise
        self.header = header

    def _append_lines(self, lines: list[bytes]) -> int:
        """Append, and return the number of whole lines written. Cut half a line off before the next one."""
        if self._is_torn:
            self._cut_torn_line()
        data = b"".join(lines)
        num_written, trouble = self._write(data)
        if num_written == len(data):
            self._num_bytes += num_written
            return len(lines)
        num_lines = data.count(b"\n", 0, num_written)
        self._num_bytes += sum(map(len, lines[:num_lines]))
        self._is_torn = True
        with contextlib.suppress(SpoolUnavailable):  # retried before the next line
            self._cut_torn_line()
        if trouble is not None and trouble.errno not in NO_ROOM:
            raise SpoolUnavailable.from_os_error("append to a token log", trouble) from trouble
        return num_lines

    def _write(self, data: bytes) -> tuple[int, OSError | None]:
        try:
            return self._fs.append(self._fd, data), None
        except OSError as error:
            return 0, error

    def _cut_torn_line(self) -> None:
        try:
            self._fs.truncate(self._fd, self._num_bytes)
        except OSError as error:
            raise SpoolUnavailable.from_os_error("cut an incomplete line off a token log", error) from error
        self._is_torn = False

    def _cut(self, tail: FileTail | None) -> LoggedTokens:
        """Cut half a line off in place; replace the file to remove whole lines, so that readers notice."""
        logged = parse(tail.data if tail else b"")
        if tail is None or logged.num_good_bytes == len(tail.data):
            return logged
        if b"\n" in tail.data[logged.num_good_bytes :]:
            path = Path(self._path)
            fresh = path.with_name(f".{path.name}.cut")
            self._fs.unlink(fresh)
            self._fs.write_new(fresh, tail.data[: logged.num_good_bytes], is_synced=False)
            self._fs.rename(fresh, self._path)
            return logged
        fd = self._fs.open_append(self._path)
        try:
            self._fs.truncate(fd, logged.num_good_bytes)
        finally:
            self._fs.close(fd)
        return logged


class TokenLogReader:
    """Follows one log from its start. Keeps no file open; the log may appear later."""

    def __init__(self, path: AnyPath, fs: FileSystem | None = None) -> None:
        self._path = path
        self._fs = fs or FileSystem()
        self.header: LogHeader | None = None
        self._offset = 0
        self._crc = 0  # of the bytes before the offset
        self._inode = 0
        self._next_index = 0

    @property
    def next_index(self) -> int:
        """The index of the next token that `read_new` returns."""
        return self._next_index

    def read_new(self) -> list[TokenRecord]:
        """Return the new tokens since the last call.

        Raises:
            LogCut: the log lost tokens that were returned earlier. The next call starts over at index 0.
        """
        tail = _read_from(self._fs, self._path, self._offset)
        if tail is None:
            return []
        if self._offset and (tail.inode != self._inode or tail.size < self._offset):
            self._check_seen()
        self._inode = tail.inode
        logged = parse(tail.data, next_index=self._next_index, is_start=self._offset == 0)
        self._crc = zlib.crc32(tail.data[: logged.num_good_bytes], self._crc)
        self._offset += logged.num_good_bytes
        self._next_index += len(logged.records)
        self.header = logged.header or self.header
        return logged.records

    def _check_seen(self) -> None:
        """Check that the new file begins with the bytes that were read from the old one."""
        whole = _read_from(self._fs, self._path, 0)
        seen = whole.data[: self._offset] if whole else b""
        if len(seen) == self._offset and zlib.crc32(seen) == self._crc:
            return
        num_tokens = self._next_index
        self._offset = self._crc = self._inode = self._next_index = 0
        self.header = None
        raise LogCut(f"the log lost some of the {num_tokens} tokens that were read from it")


def _read_from(fs: FileSystem, path: AnyPath, offset: int) -> FileTail | None:
    try:
        return fs.read_from(path, offset)
    except FileNotFoundError:
        return None
    except (NotPlainFile, OSError) as error:
        reason = error if isinstance(error, OSError) else OSError(str(error))
        raise SpoolUnavailable.from_os_error("read a token log", reason) from error


def _seal(body: bytes) -> bytes:
    return b"%s%s%d}\n" % (body, _CRC, zlib.crc32(body))


def _open(line: bytes) -> dict[str, Any] | None:
    """Return the fields of a line; None where its checksum is wrong."""
    body, _, crc = line.rpartition(_CRC)
    if crc != b"%d}" % zlib.crc32(body):
        return None
    try:
        fields = json.loads(body + b"}")
    except (ValueError, RecursionError):
        return None
    return fields if isinstance(fields, dict) else None


def _header(fields: dict[str, Any]) -> LogHeader | None:
    texts = [fields.get(name) for name in ("model", "weights_hash", "tokenizer_hash")]
    if fields.get("version") != VERSION or len(fields) != 4:
        return None
    return LogHeader(*texts) if all(isinstance(text, str) for text in texts) else None  # type: ignore[arg-type]


def _record(fields: dict[str, Any] | None) -> TokenRecord | None:
    if fields is None or not fields.keys() <= {"index", "token_id", "text", "logprobs"}:
        return None
    try:
        return msgspec.convert(fields, TokenRecord)
    except msgspec.ValidationError:
        return None
