"""What the processes print, cut into lines and put into STATE_DIR/logs by the supervisor.

One file a process (`rank-0.log`, `api.log`, `supervisor.log`), rotated by size. A full disk costs log
lines, not the service. Knows nothing of what the lines say.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections import deque
from pathlib import Path

from config.rotating_file import RotatingFile

MAX_LINE_BYTES = 64 * 1024
NUM_LAST_LINES = 20


def log_path(log_dir: Path, process: str) -> Path:
    """Where the log of a process lies: `rank 0` → `rank-0.log`."""
    return log_dir / f"{process.replace(' ', '-')}.log"


# As config/logs.py writes it.
_LINE_START = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+ [A-Z]+ [^:]+: ")


class LogMarks:
    """Where each log of a folder ended at one moment."""

    def __init__(self, log_dir: Path) -> None:
        self._ends: dict[Path, tuple[int, int]] = {}
        for path in log_dir.glob("*.log"):
            with contextlib.suppress(OSError):
                found = path.stat()
                self._ends[path] = (found.st_ino, found.st_size)

    def read_since(self, path: Path) -> list[str]:
        """The lines that a log got since then; all of one that is new or was rotated."""
        try:
            with path.open("rb") as file:
                inode, size = self._ends.get(path, (0, 0))
                file.seek(size if os.fstat(file.fileno()).st_ino == inode else 0)
                return file.read().decode("utf-8", errors="replace").splitlines()
        except OSError:
            return []


class LineBuffer:
    """Cuts a stream of bytes into whole lines; hands each on by `put_line`."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> None:
        """Take what was read; an unfinished line waits for its end, unless it is too long."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self.put_line(line.decode("utf-8", errors="replace"))
        if len(self._rest) > MAX_LINE_BYTES:
            self.finish()

    def finish(self) -> None:
        """The stream has ended: what waits is a line."""
        if self._rest:
            self.put_line(self._rest.decode("utf-8", errors="replace"))
            self._rest = b""

    def put_line(self, line: str) -> None:
        """Hand on one line without its newline."""
        raise NotImplementedError


class ProcessLog(LineBuffer):
    """The log of one life of a process: into its file, with the last lines kept for the reason of its end."""

    def __init__(self, file: RotatingFile) -> None:
        super().__init__()
        self._file = file
        self.last_lines: deque[str] = deque(maxlen=NUM_LAST_LINES)

    @property
    def last_words(self) -> str:
        """What its last line says, without time, level and process; empty where it said nothing."""
        line = self.last_lines[-1] if self.last_lines else ""
        with contextlib.suppress(ValueError, KeyError, TypeError):
            return str(json.loads(line)["message"])  # LOG_FORMAT=json
        return _LINE_START.sub("", line)

    def put_line(self, line: str) -> None:
        """Append to the file; the line is dropped where the disk refuses it."""
        if line.strip():
            self.last_lines.append(line)
        with contextlib.suppress(OSError):
            self._file.write_line(line)
