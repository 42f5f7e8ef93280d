"""A log file that several processes may write and rotate together.

Each line is one write. The writer that finds the file too long renames it to `.1` (and `.1` to `.2`, and so
on) under a lock; the others notice the new file and open it. Knows nothing of the lines' content.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

MAX_LOG_BYTES = 16 << 20
NUM_KEPT_LOGS = 5


class RotatingFile:
    """An append-only text file of bounded size, opened at its first line. Not thread-safe."""

    def __init__(self, path: Path, *, max_bytes: int = MAX_LOG_BYTES, num_kept: int = NUM_KEPT_LOGS) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self._num_kept = num_kept
        self._descriptor: int | None = None
        self._is_torn = False

    def open(self) -> int:
        """Open the file, and return its descriptor; make it and its folder where they are missing.

        Raises:
            OSError: as every method that writes; the next line retries.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        fresh = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.close()
        self._descriptor = fresh
        return fresh

    def write_line(self, line: str) -> None:
        """Append one line and a newline. Raises OSError; the line is then lost."""
        data = (line + "\n").encode("utf-8", errors="backslashreplace")
        current = self._find_current()
        descriptor = self.open() if current is None else current
        if os.fstat(descriptor).st_size + len(data) > self._max_bytes:
            descriptor = self._rotate()
        if self._is_torn:  # a full disk cut the previous line
            data = b"\n" + data
        num_written = os.write(descriptor, data)
        self._is_torn = num_written < len(data)

    def close(self) -> None:
        """Close the file; the next line opens it again."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                os.close(self._descriptor)
            self._descriptor = None

    def _find_current(self) -> int | None:
        """Return the open descriptor, if the path still names its file."""
        if self._descriptor is None:
            return None
        try:
            named = self.path.stat()
        except FileNotFoundError:
            return None
        ours = os.fstat(self._descriptor)
        is_current = (named.st_dev, named.st_ino) == (ours.st_dev, ours.st_ino)
        return self._descriptor if is_current else None

    def _rotate(self) -> int:
        lock = os.open(
            self.path.with_name(f".{self.path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # Another writer may have rotated while this one waited for the lock.
            current = self._find_current()
            if current is not None and os.fstat(current).st_size > 0:
                self._shift()
            return self.open()
        finally:
            os.close(lock)

    def _shift(self) -> None:
        for number in range(self._num_kept - 1, 0, -1):
            older = self._numbered(number)
            if older.exists():
                older.replace(self._numbered(number + 1))
        self.path.replace(self._numbered(1))

    def _numbered(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")
