"""Writes the output of the processes, line by line, to STATE_DIR/logs.

One file per process (`rank-0.log`, `api.log`, `supervisor.log`), rotated by size. A full disk loses log lines
and nothing else. Knows nothing of what the lines say.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections import deque
from pathlib import Path

from config.rotating_file import RotatingFile

NUM_LAST_LINES = 20
# As config/logs.py writes it.
_LINE_START = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+ [A-Z]+ [^:]+: ")


def log_path(log_dir: Path, process: str) -> Path:
    """The log file of a process: `rank 0` → `rank-0.log`."""
    return log_dir / f"{process.replace(' ', '-')}.log"


class LogMarks:
    """The ends of all logs of a folder at one moment."""

    def __init__(self, log_dir: Path) -> None:
        self._ends: dict[Path, tuple[int, int]] = {}
        for path in log_dir.glob("*.log"):
            with contextlib.suppress(OSError):
                found = path.stat()
                self._ends[path] = (found.st_ino, found.st_size)

    def read_since(self, path: Path) -> list[str]:
        """The lines that a log got since then; all lines of a new or rotated log."""
        try:
            with path.open("rb") as file:
                inode, size = self._ends.get(path, (0, 0))
                file.seek(size if os.fstat(file.fileno()).st_ino == inode else 0)
                return file.read().decode("utf-8", errors="replace").splitlines()
        except OSError:
            return []


class LineBuffer:
    """Cuts a stream of bytes into lines, and passes each to `put_line`."""

    max_line_bytes = 64 * 1024

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> None:
        """Take some bytes; an incomplete line waits for its end, unless it is too long."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self.put_line(line.decode("utf-8", errors="replace"))
        if len(self._rest) > self.max_line_bytes:
            self.finish()

    def finish(self) -> None:
        """The stream has ended: the rest is a line."""
        if self._rest:
            self.put_line(self._rest.decode("utf-8", errors="replace"))
            self._rest = b""

    def put_line(self, line: str) -> None:
        """Take one line without its newline."""
        raise NotImplementedError


class ProcessLog(LineBuffer):
    """The log of one process: writes to its file, and keeps the last lines for the reason of its end."""

    def __init__(self, file: RotatingFile) -> None:
        super().__init__()
        self._file = file
        self.last_lines: deque[str] = deque(maxlen=NUM_LAST_LINES)

    @property
    def last_words(self) -> str:
        """The message of its last line, without time, level and process; empty without a line."""
        line = self.last_lines[-1] if self.last_lines else ""
        with contextlib.suppress(ValueError, KeyError, TypeError):
            return str(json.loads(line)["message"])  # LOG_FORMAT=json
        return _LINE_START.sub("", line)

    def put_line(self, line: str) -> None:
        """Append to the file; drop the line if the disk refuses it."""
        if line.strip():
            self.last_lines.append(line)
        with contextlib.suppress(OSError):
            self._file.write_line(line)
