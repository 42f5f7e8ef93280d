"""`logs`: prints the logs of all or some processes, merged by time; `-f` prints new lines as they come.

Reads text lines (`2026-11-23 14:32:10.123 INFO rank 0: …`) and JSON lines (`{"time": …}`). A line without a
time, such as those of a traceback, stays below the one before it.
"""

from __future__ import annotations

import heapq
import json
import os
import re
import time
from collections import deque
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path

from cluster.errors import ClusterError
from cluster.log_files import log_path
from cluster.terminal import Terminal
from config import Settings

FOLLOW_INTERVAL_S = 0.25
_TEXT_TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} ")

Entry = tuple[float, str]  # seconds since 1970, line


def show_logs(
    settings: Settings, terminal: Terminal, process: str | None, *, num_lines: int, follow: bool
) -> int:
    """Print the last lines; with `follow`, also new ones until Ctrl-C."""
    paths = find_logs(settings.log_dir, process)
    tails = {path: Tail(path) for path in paths}
    for _, line in deque(heapq.merge(*(tail.read_new() for tail in tails.values())), maxlen=num_lines):
        terminal.line(line)
    try:
        while follow:
            time.sleep(FOLLOW_INTERVAL_S)
            for path in find_logs(settings.log_dir, process):
                tails.setdefault(path, Tail(path))
            for _, line in heapq.merge(*(tail.read_new() for tail in tails.values())):
                terminal.line(line)
    except KeyboardInterrupt:
        pass
    return 0


def find_logs(log_dir: Path, process: str | None) -> list[Path]:
    """The log files of a process: `rank` (all of them), `0`, `rank-0`, `api`, `supervisor`; None: all.

    Raises:
        ClusterError: there is no such log; names those that exist.
    """
    every = sorted(log_dir.glob("*.log"))
    if process is None:
        return every
    if process in ("rank", "ranks"):
        return [path for path in every if path.name.startswith("rank-")]
    number = re.fullmatch(r"(?:rank)?[- ]?(\d+)", process)
    path = log_path(log_dir, f"rank {number[1]}" if number else process)
    if path not in every:
        names = ", ".join(path.stem for path in every) or "none yet"
        raise ClusterError(f"there is no log of {process!r} in {log_dir}; allowed: {names}")
    return [path]


class Tail:
    """Reads the new lines of one log file; starts again in a rotated one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inode = 0
        self._offset = 0
        self._time = 0.0

    def read_new(self) -> list[Entry]:
        """New complete lines with their times."""
        try:
            with self._path.open("rb") as file:
                status = os.fstat(file.fileno())
                if status.st_ino != self._inode or status.st_size < self._offset:
                    self._inode, self._offset = status.st_ino, 0
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        return list(self._add_times(whole.decode("utf-8", errors="replace").splitlines()))

    def _add_times(self, lines: Iterable[str]) -> Iterator[Entry]:
        for line in lines:
            self._time = max(self._time, parse_time(line) or 0.0)
            yield self._time, line


def parse_time(line: str) -> float | None:
    """The time at the start of a log line; None without one."""
    try:
        if _TEXT_TIME.match(line):
            return datetime.fromisoformat(line[:23]).timestamp()
        if line.startswith('{"time"'):
            return datetime.fromisoformat(json.loads(line)["time"]).timestamp()
    except (ValueError, TypeError, KeyError):
        pass
    return None
