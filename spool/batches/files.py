"""Files that clients upload and that batches write.

    files/{id}.data   the content
    files/{id}.json   the record; it is written last and removed first, so the file exists while this does

An id is "file-" and 32 characters of 0-9a-f. A content is written in pieces to tmp/ and moves here at its
end, so no reader sees half of it. Publishing under the same id replaces the file. Knows nothing of HTTP or of
what a file contains.
"""

from __future__ import annotations

import contextlib
import re
import time
from pathlib import Path

import msgspec

from spool.admission import check_free_space
from spool.batches.records import read_record, write_record
from spool.errors import CorruptRequest, system_trouble
from spool.names import make_id
from spool.spool import Spool
from spool.sweep import STALE_SECONDS

_ID = re.compile(r"file-[0-9a-f]{32}")


class StoredFile(msgspec.Struct, frozen=True):
    """The record of a file. expires_unix: None where only the retention ends it."""

    id: str
    filename: str
    purpose: str
    num_bytes: int
    created_unix: float
    owner: str = ""
    expires_unix: float | None = None


def make_file_id() -> str:
    """Return a new id."""
    return f"file-{make_id()}"


class Upload:
    """A content that is being written; use it as a context manager. Without `publish` nothing remains."""

    def __init__(self, spool: Spool) -> None:
        self._spool, self._fs = spool, spool.fs
        self._path = Path(spool.folder.temporary())
        self.num_bytes = 0
        with system_trouble("begin a file"):
            self._fd = self._fs.open_append(self._path)

    def append(self, data: bytes | bytearray) -> None:
        """Append a piece.

        Raises:
            SpoolUnavailable: the disk is nearly full, or it refused.
        """
        check_free_space(self._spool.folder, self._fs, self._spool.admission.disk, len(data))
        view = memoryview(data)
        with system_trouble("write a file"):
            while view:
                view = view[self._fs.append(self._fd, bytes(view)) :]
        self.num_bytes += len(data)

    def publish(self, record: StoredFile) -> StoredFile:
        """Make the content a file under this record, whose size is set here. Raises SpoolUnavailable."""
        record = msgspec.structs.replace(record, num_bytes=self.num_bytes)
        files, is_synced = self._spool.folder.files, self._spool.is_synced
        with system_trouble("write a file"):
            if is_synced:
                self._fs.sync(self._fd)
            self._fs.rename(self._path, files / f"{record.id}.data")
            if is_synced:
                self._fs.order_folder(files)
            write_record(self._spool, files / f"{record.id}.json", record, is_synced=is_synced)
        return record

    def __enter__(self) -> Upload:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._fs.close(self._fd)
            self._fs.unlink(self._path)


class FileStore:
    """The files of one spool."""

    def __init__(self, spool: Spool) -> None:
        self._spool, self._fs, self._folder = spool, spool.fs, spool.folder.files

    def begin(self) -> Upload:
        """Begin to write a content. Raises SpoolUnavailable."""
        return Upload(self._spool)

    def path(self, id: str) -> Path:
        """Return the path of a content. The id must be that of a record."""
        return self._folder / f"{id}.data"

    def find(self, id: str) -> StoredFile | None:
        """Return a file of any owner; None where it is unknown. Raises CorruptRequest, SpoolUnavailable."""
        if _ID.fullmatch(id) is None:
            return None
        return read_record(self._fs, self._folder / f"{id}.json", StoredFile)

    def list_all(self) -> list[StoredFile]:
        """Return all files, the newest first; damaged records are left out. Raises SpoolUnavailable."""
        found = []
        for name in self._spool.names(self._folder):
            if name.endswith(".json"):
                with contextlib.suppress(CorruptRequest):
                    found.append(self.find(name.removesuffix(".json")))
        known = [file for file in found if file is not None]
        return sorted(known, key=lambda file: (file.created_unix, file.id), reverse=True)

    def count_bytes(self) -> int:
        """Return the size of all contents. Raises SpoolUnavailable."""
        return sum(map(self._size, self._spool.names(self._folder)))

    def delete(self, id: str) -> bool:
        """Remove a file; False where it was unknown. Raises SpoolUnavailable."""
        if _ID.fullmatch(id) is None:
            return False
        with system_trouble("remove a file"):
            is_removed = self._fs.unlink(self._folder / f"{id}.json")
            self._fs.unlink(self.path(id))
        return is_removed

    def sweep(self, now: float, retention_seconds: float) -> int:
        """Remove files that have expired, and what an unfinished publish or removal left.

        Args:
            retention_seconds: 0 keeps the files that name no expiry.
        """
        num_removed = 0
        for file in self.list_all():
            ends_unix = file.expires_unix
            if ends_unix is None and retention_seconds:
                ends_unix = file.created_unix + retention_seconds
            num_removed += ends_unix is not None and now > ends_unix and self.delete(file.id)
        names = set(self._spool.names(self._folder))
        for name in names:
            id = name.removesuffix(".data")
            if id != name and f"{id}.json" not in names and self._is_stale(name, now):
                num_removed += self.delete(id)
        return num_removed

    def _size(self, name: str) -> int:
        try:
            return self._fs.stat(self._folder / name).st_size if name.endswith(".data") else 0
        except OSError:
            return 0

    def _is_stale(self, name: str, now: float) -> bool:
        try:
            return now - self._fs.stat(self._folder / name).st_mtime > STALE_SECONDS
        except OSError:
            return False


def make_record(
    filename: str, purpose: str, *, owner: str, id: str | None = None, lives_seconds: int | None = None
) -> StoredFile:
    """Make the record of a new file; `publish` sets its size.

    Args:
        lives_seconds: the time after which it expires, whatever the retention.
    """
    now = time.time()
    expires_unix = None if lives_seconds is None else now + lives_seconds
    return StoredFile(id or make_file_id(), filename, purpose, 0, now, owner, expires_unix)
