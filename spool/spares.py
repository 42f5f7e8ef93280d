"""Temporary files of one process, one of them made ahead.

To make a file takes longer than all else that the disk does at a submit (180 of 260 us on ext4 after a
pause), so the next request's is made while nobody waits for it. It is empty and lies in tmp/; when its
process dies, the next sweep removes it (`is_orphan`). Knows nothing of requests.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
from collections import deque
from pathlib import Path

from spool.fsio import FileSystem, join


class SpareFiles:
    """Safe to use from several threads."""

    def __init__(self, folder: Path, fs: FileSystem) -> None:
        self._folder = folder
        self._fs = fs
        self._tag = secrets.token_hex(8)  # of this object's files
        self._counter = itertools.count()
        self._made: deque[tuple[str, int]] = deque()

    def write(self, data: bytes, *, is_synced: bool) -> str:
        """Write a temporary file, and return its path. Raises OSError, and leaves nothing then."""
        path, fd = self._take()
        try:
            if fd is None:
                fd = self._fs.create(path)
            self._fs.fill(fd, data, is_synced=is_synced)
        except BaseException:
            with contextlib.suppress(OSError):
                self._fs.unlink(path)
            raise
        return path

    def make(self) -> None:
        """Make the next file, unless there is one. If the disk says no, `write` makes its own."""
        if not self._made:
            path = self._new_path()
            with contextlib.suppress(OSError):
                self._made.append((path, self._fs.create(path)))

    def remove(self) -> None:
        """Remove what `make` made."""
        while self._made:
            path, fd = self._made.pop()
            with contextlib.suppress(OSError):
                self._fs.close(fd)
                self._fs.unlink(path)

    def _take(self) -> tuple[str, int | None]:
        """A path, and the descriptor of the file if it was made and not swept since."""
        while self._made:
            path, fd = self._made.pop()
            if not self._fs.is_open_file_deleted(fd):
                return path, fd
            self._fs.close(fd)
        return self._new_path(), None

    def _new_path(self) -> str:
        return join(self._folder, f"{os.getpid()}-{self._tag}-{next(self._counter)}")


def is_orphan(name: str, num_bytes: int, fs: FileSystem) -> bool:
    """Whether a temporary file was made ahead by a process that is gone.

    Where processes do not see each other (two containers, one folder), a living one's may seem so: it makes
    another.
    """
    pid = name.partition("-")[0]
    return num_bytes == 0 and pid.isdecimal() and pid.isascii() and not fs.is_process_alive(int(pid))
