"""A log file that several processes may write and rotate together.

Lines are appended with one write each. The writer that finds the file too long renames it to `.1` (and `.1`
to `.2`, and so on) under a lock; the others notice that the name leads to another file and open it again.
Knows nothing of what is logged.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

MAX_LOG_BYTES = 16 << 20
NUM_KEPT_LOGS = 5


class RotatingFile:
    """An append-only text file of bounded size. Not for use by several threads at once."""

    def __init__(self, path: Path, *, max_bytes: int = MAX_LOG_BYTES, num_kept: int = NUM_KEPT_LOGS) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self._num_kept = num_kept
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._descriptor = self._open()

    def write_line(self, line: str) -> None:
        """Append one line; the newline is added here."""
        data = (line + "\n").encode("utf-8", errors="backslashreplace")
        if not self._is_current():
            self._reopen()
        if os.fstat(self._descriptor).st_size + len(data) > self._max_bytes:
            self._rotate()
        os.write(self._descriptor, data)

    def close(self) -> None:
        """Close the file; nothing may be written afterwards."""
        os.close(self._descriptor)

    def _open(self) -> int:
        return os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def _is_current(self) -> bool:
        try:
            named = self.path.stat()
        except FileNotFoundError:
            return False
        ours = os.fstat(self._descriptor)
        return (named.st_dev, named.st_ino) == (ours.st_dev, ours.st_ino)

    def _reopen(self) -> None:
        os.close(self._descriptor)
        self._descriptor = self._open()

    def _rotate(self) -> None:
        lock = os.open(
            self.path.with_name(f".{self.path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # Another writer may have rotated while this one waited for the lock.
            if self._is_current() and os.fstat(self._descriptor).st_size > 0:
                self._shift()
            self._reopen()
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
