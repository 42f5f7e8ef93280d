"""The token log: every token of an answer, on disk before anyone sees it.

stream/<id> is one line of JSON a token, appended by rank 0, read by any number of front doors:

    {"version":1,"model":"…","weights_hash":"…","tokenizer_hash":"…","crc32":N}   header: what it began with
    {"index":0,"token_id":42,"text":" Paris","logprob":-0.1,"crc32":N}             logprob only if known

crc32 is of the line's bytes before `,"crc32":`. A last line without a newline is not there yet. A line that
is damaged or out of order cuts the log at its start: what follows is generated again. Complete lines are
only ever taken away by putting a new file in the old one's place, so a reader notices (`LogCut`) when
tokens that it gave out are no longer the log's. This room knows nothing of models, folders or requests; the
log is not synced (after a power cut its end may be gone).
"""

from __future__ import annotations

import contextlib
import json
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config.disk_trouble import NO_ROOM
from spool.errors import LogCut, SpoolUnavailable
from spool.fsio import AnyPath, FileSystem, FileTail, NotPlainFile

VERSION = 1
_CRC = b',"crc32":'


@dataclass(frozen=True)
class TokenRecord:
    """One token. text is what became releasable with it (incomplete UTF-8, possible stops are held back)."""

    index: int
    token_id: int
    text: str
    logprob: float | None = None


@dataclass(frozen=True)
class LogHeader:
    """What an answer began with. A continuation under another model or tokenizer would be another answer."""

    model: str
    weights_hash: str = ""
    tokenizer_hash: str = ""


@dataclass(frozen=True)
class LoggedTokens:
    """What a log says, and up to which byte it can be believed."""

    header: LogHeader | None
    records: list[TokenRecord]
    num_good_bytes: int


def encode(record: TokenRecord) -> bytes:
    """One line. A logprob that JSON cannot hold (minus infinity) is left out."""
    body = f'{{"index":{record.index},"token_id":{record.token_id},"text":{json.dumps(record.text)}'
    if record.logprob is not None and math.isfinite(record.logprob):
        body += f',"logprob":{float(record.logprob)!r}'
    return _seal(body.encode())


def encode_header(header: LogHeader) -> bytes:
    """The first line."""
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


def replay(path: AnyPath, fs: FileSystem | None = None) -> list[TokenRecord]:
    """Read a log's good tokens; none when it is not there. Changes nothing: a writer cuts what is bad."""
    return read_log(path, fs).records


def read_log(path: AnyPath, fs: FileSystem | None = None) -> LoggedTokens:
    """Read a log's header and good tokens; nothing when it is not there."""
    tail = _read_from(fs or FileSystem(), path, 0)
    return parse(tail.data if tail else b"")


class TokenLogWriter:
    """The one appender of a log. Opening it cuts off a damaged end; `resumed` is what stayed."""

    def __init__(
        self, path: AnyPath, fs: FileSystem | None = None, *, header: LogHeader | None = None
    ) -> None:
        """Open or make the log. `header` goes into an empty one; `self.header` is the one that counts."""
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

        Records that the log has already are skipped, so a failed append may be repeated as it was.

        Raises:
            ValueError: an index is left out.
            SpoolUnavailable: the disk is full or broken. Whole lines that went in count.
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
            raise SpoolUnavailable("cannot append to a token log: disk full", code="disk_full", status=507)

    def close(self) -> None:
        """Close the file; the log stays."""
        if self._fd >= 0:
            with contextlib.suppress(
                OSError
            ):  # the descriptor is gone all the same, and nothing was held back
                self._fs.close(self._fd)
            self._fd = -1

    def __enter__(self) -> TokenLogWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write_header(self, header: LogHeader) -> None:
        try:
            if not self._append_lines([encode_header(header)]):
                raise SpoolUnavailable("cannot begin a token log: disk full", code="disk_full", status=507)
        except SpoolUnavailable:
            self.close()
            raise
        self.header = header

    def _append_lines(self, lines: list[bytes]) -> int:
        """Append; how many whole lines went in. Half a line is taken back before anything follows it."""
        if self._is_torn:
            self._take_back()
        data = b"".join(lines)
        num_written, trouble = self._write(data)
        if num_written == len(data):
            self._num_bytes += num_written
            return len(lines)
        num_lines = data.count(b"\n", 0, num_written)
        self._num_bytes += sum(map(len, lines[:num_lines]))
        self._is_torn = True
        with contextlib.suppress(SpoolUnavailable):  # tried again before the next line
            self._take_back()
        if trouble is not None and trouble.errno not in NO_ROOM:
            raise SpoolUnavailable.from_os_error("append to a token log", trouble) from trouble
        return num_lines

    def _write(self, data: bytes) -> tuple[int, OSError | None]:
        try:
            return self._fs.append(self._fd, data), None
        except OSError as error:
            return 0, error

    def _take_back(self) -> None:
        try:
            self._fs.truncate(self._fd, self._num_bytes)
        except OSError as error:
            raise SpoolUnavailable.from_os_error("mend a token log", error) from error
        self._is_torn = False

    def _cut(self, tail: FileTail | None) -> LoggedTokens:
        """Take away half a line in place, whole lines by a new file: readers must notice that."""
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
    """Follows one log from its start. Holds no open file; the log may appear later."""

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
        """The index of the next token that `read_new` will give."""
        return self._next_index

    def read_new(self) -> list[TokenRecord]:
        """Read the tokens that are new since the last call.

        Raises:
            LogCut: tokens given out earlier are gone from the log. The next call starts over at index 0.
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
        """Another file lies there: does it begin with the very bytes that were read?"""
        whole = _read_from(self._fs, self._path, 0)
        seen = whole.data[: self._offset] if whole else b""
        if len(seen) == self._offset and zlib.crc32(seen) == self._crc:
            return
        num_tokens = self._next_index
        self._offset = self._crc = self._inode = self._next_index = 0
        self.header = None
        raise LogCut(f"the log no longer has all of the {num_tokens} tokens that were read from it")


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
    """The fields of a line; None when its checksum is not its own."""
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
    if fields is None or not fields.keys() <= {"index", "token_id", "text", "logprob"}:
        return None
    index, token_id, text = fields.get("index"), fields.get("token_id"), fields.get("text")
    logprob = fields.get("logprob")
    is_good = type(index) is int and type(token_id) is int and isinstance(text, str)
    if not is_good or not (logprob is None or type(logprob) is float):
        return None
    assert isinstance(index, int)
    assert isinstance(token_id, int)
    assert isinstance(text, str)
    return TokenRecord(index, token_id, text, logprob)
