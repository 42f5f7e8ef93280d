"""The journal of a batch: each line of its input that has ended, with its line of output.

    {number} {kind} {crc32:08x} {output}\n     kind: o (for the output file) or e (for the error file)

crc32 covers the number, the kind and the output. A line counts when it is in the journal and on the disk. The
first damaged or incomplete entry cuts the journal at its start: what it loses runs again, or its result is
still in the spool. Only the holder of the batches' lock writes. Knows nothing of results or of what an output
means.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from spool.batches.lines import CHUNK_BYTES, scan_lines
from spool.errors import system_trouble
from spool.fsio import FileSystem

MAX_ENTRY_BYTES = 1 << 30
KINDS = (b"o", b"e")


@dataclass(frozen=True)
class Ended:
    """A line of the input that has ended. output: its line of output, without a line feed."""

    number: int
    is_error: bool
    output: bytes

    def to_bytes(self) -> bytes:
        """Return the entry."""
        kind = KINDS[self.is_error]
        return b"%d %s %08x %s\n" % (self.number, kind, _crc(self.number, kind, self.output), self.output)


@dataclass(frozen=True)
class Place:
    """Where an output is in the journal."""

    is_error: bool
    offset: int
    num_bytes: int


class Journal:
    """The journal of one batch; use it as a context manager. `ended` has the place of each ended line."""

    def __init__(self, path: Path, fs: FileSystem, *, is_synced: bool) -> None:
        """Open or make the journal, and cut off a damaged end. Raises SpoolUnavailable."""
        self._path, self._fs, self._is_synced = path, fs, is_synced
        self.ended, self._num_bytes = read_journal(path, fs)
        self.num_failed = sum(place.is_error for place in self.ended.values())
        with system_trouble("open a batch's journal"):
            self._fd = fs.open_append(path)
        self._is_torn = True  # until a look at the size says otherwise

    def append(self, entries: Sequence[Ended]) -> None:
        """Append entries of lines that have none, the first one of each line; all of them count, or none.

        Raises:
            SpoolUnavailable: the disk refused; repeat the call.
        """
        fresh: dict[int, Ended] = {}
        for entry in entries:
            if entry.number not in self.ended:
                fresh.setdefault(entry.number, entry)
        if not fresh:
            return
        data, places = self._lay_out(fresh.values())
        with system_trouble("write a batch's journal"):
            if self._is_torn:
                self._fs.truncate(self._fd, self._num_bytes)
            self._is_torn = True
            view = memoryview(data)
            while view:
                view = view[self._fs.append(self._fd, bytes(view)) :]
            if self._is_synced:
                self._fs.sync(self._fd)
                self._fs.sync_folder(self._path.parent)
        self._is_torn = False
        self._num_bytes += len(data)
        self.ended.update(places)
        self.num_failed += sum(place.is_error for place in places.values())

    def read(self, place: Place) -> bytes:
        """Return an output. Raises SpoolUnavailable."""
        with system_trouble("read a batch's journal"):
            return self._fs.read_part(self._path, place.offset, place.num_bytes)

    def close(self) -> None:
        """Close the file; the journal stays."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                self._fs.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _lay_out(self, entries: Iterable[Ended]) -> tuple[bytes, dict[int, Place]]:
        data, places = bytearray(), {}
        for entry in entries:
            data += entry.to_bytes()
            end = self._num_bytes + len(data) - 1
            places[entry.number] = Place(entry.is_error, end - len(entry.output), len(entry.output))
        return bytes(data), places


def read_journal(path: Path, fs: FileSystem) -> tuple[dict[int, Place], int]:
    """Return the place of each ended line, and the number of valid bytes. Raises SpoolUnavailable."""
    ended: dict[int, Place] = {}
    num_bytes = 0
    for raw in scan_lines(fs, path, MAX_ENTRY_BYTES, skips_blank=False):
        entry = _parse(raw.text or b"") if raw.is_whole else None
        if entry is None or entry.number in ended:
            break
        num_bytes = raw.offset + raw.num_bytes + 1
        start = num_bytes - 1 - len(entry.output)
        ended[entry.number] = Place(entry.is_error, start, len(entry.output))
    return ended, num_bytes


def follow_journal(path: Path, fs: FileSystem, offset: int) -> Iterator[tuple[Ended, int]]:
    """Yield the whole entries from an offset on, each with the offset behind it. For readers: cuts nothing.

    Raises:
        SpoolUnavailable: the disk refused to read.
    """
    rest = b""
    with system_trouble("read a batch's journal"):
        try:
            while part := fs.read_part(path, offset + len(rest), CHUNK_BYTES):
                *texts, rest = (rest + part).split(b"\n")
                for text in texts:
                    entry = _parse(text)
                    if entry is None:
                        return
                    offset += len(text) + 1
                    yield entry, offset
        except FileNotFoundError:
            return


def _parse(text: bytes) -> Ended | None:
    words = text.split(b" ", 3)
    if len(words) != 4 or not words[0].isdigit() or words[1] not in KINDS:
        return None
    number, kind, crc, output = int(words[0]), words[1], words[2], words[3]
    if crc != b"%08x" % _crc(number, kind, output):
        return None
    return Ended(number, kind == b"e", output)


def _crc(number: int, kind: bytes, output: bytes) -> int:
    return zlib.crc32(output, zlib.crc32(b"%d %s" % (number, kind)))
