"""The thread beside a rank's main loop: sends heartbeats, reads the supervisor's lines, watches progress.

Knows no MLX and no ring. It runs while the main thread is inside an evaluation, where Python signal handlers
do not run. A phase has a limit: if the main thread makes no progress within it, the thread logs the stacks of
all threads and ends the process. A rank whose supervisor is gone ends at once, so that no process is
orphaned. A rank on another host also ends when no ping has come within its limit, since a machine that loses
its power sends no end of file.

    standard input    {"epoch": 3, "rank": 1, "hosts": ["127.0.0.1:5001", ...], "secret": "..."}   first; also
                       "host_name", "model_folder", "layers", "dequantize", "ping_limit_s" over several hosts
                      {"event": "settings", "values": {...}}      later, at each edit of live settings
                      {"event": "ping"}                           once a second, on other hosts; also before
                      end of file                                 the supervisor is gone
    standard output   {"event": "started", "pid": ..., "start_time": ...}   at once
                      {"event": "heartbeat", "rank": 1, "phase": "ready", "step": 17, "progress": 1.0,
                       "memory_bytes": ...}
"""

from __future__ import annotations

import faulthandler
import json
import os
import select
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import psutil

from config.live import SettingsLines
from config.logs import say

HEARTBEAT_SECONDS = 1.0
# On macOS psutil fails now and then, with errors of other types (psutil issues 1901, 2116).
PSUTIL_ERRORS = (psutil.Error, RuntimeError, SystemError, OSError)
PING_LINE = b'{"event": "ping"}\n'
EXIT_CLEAN, EXIT_REFUSED, EXIT_RING_LOST, EXIT_WATCHDOG, EXIT_SUPERVISOR_GONE = 0, 2, 3, 4, 5
EXIT_DISK_REFUSED = 6  # a full or broken disk; the next start may work


@dataclass(frozen=True)
class RankStart:
    """The supervisor's start line, the first line of a rank's standard input."""

    epoch: int
    rank: int
    hosts: tuple[str, ...]
    secret: str
    layers: tuple[int, ...] | None = None  # number of layers by rank, from the supervisor's plan
    dequantize: bool | None = None  # as that plan assumes
    model_folder: str | None = None  # on this rank's host
    host_name: str = ""  # of this rank's host, for messages
    ping_limit_s: float | None = None  # end after this long without a ping

    @classmethod
    def from_line(cls, line: str) -> RankStart:
        """Read the line.

        Raises:
            ValueError: it is not a start line.
        """
        return msgspec.json.decode(line, type=cls)


def read_first_line(ping_limit_s: float | None = None) -> str:
    """Read standard input up to the end of the start line, not a byte further; "" if it ends before.

    Args:
        ping_limit_s: return "" after this long without a byte; None: wait without limit.
    """
    line = b""
    while not line.endswith(b"\n"):
        if not select.select([0], [], [], ping_limit_s)[0]:
            return ""
        byte = os.read(0, 1)
        if not byte:
            return ""
        line += byte
        if line == PING_LINE:
            line = b""
    return line.decode("utf-8")


def say_started() -> None:
    """Report this process's id and start time to the supervisor."""
    said = {"event": "started", "pid": os.getpid(), "start_time": read_start_time()}
    sys.stdout.write(json.dumps(said) + "\n")
    sys.stdout.flush()


def read_start_time() -> float:
    """Return this process's start in seconds since 1970, by psutil; now, if psutil fails."""
    try:
        return float(psutil.Process().create_time())
    except PSUTIL_ERRORS:
        return time.time()


def read_rss() -> int:
    """Return this process's resident memory in bytes; 0 if psutil fails."""
    try:
        return int(psutil.Process().memory_info().rss)
    except PSUTIL_ERRORS:
        return 0


class Watchdog:
    """Reports this rank's progress; ends the process when it stalls or its supervisor is gone."""

    def __init__(self, rank: int, *, has_supervisor: bool, ping_limit_s: float | None = None) -> None:
        self._rank = rank
        self._has_supervisor = has_supervisor
        self._ping_limit_s = ping_limit_s
        self._phase = "starting"
        self._step = 0
        self._progress = 0.0
        self._deadline: float | None = None
        self._limit = 0.0
        self._count_memory = read_rss
        self._write_lock = threading.Lock()
        self._listeners: list[Callable[[dict[str, Any]], None]] = []
        self._values: dict[str, Any] = {}
        self._settings_lock = threading.Lock()

    def count_memory_by(self, count: Callable[[], int]) -> None:
        """Report the bytes that `count` returns instead of this process's RSS; any thread may call it."""
        self._count_memory = count

    def on_settings(self, listener: Callable[[dict[str, Any]], None]) -> None:
        """Call `listener` with new values of live settings, by key, in the watchdog's thread.

        Values that came before, such as during loading, are passed at once.
        """
        with self._settings_lock:
            self._listeners.append(listener)
            if self._values:
                listener(dict(self._values))

    def start(self) -> None:
        threading.Thread(target=self._run, name="watchdog", daemon=True).start()

    @property
    def memory_bytes(self) -> int:
        return self._count_memory()

    def enter(self, phase: str, limit_seconds: float | None) -> None:
        """Begin a phase (connecting, loading, ready, draining) that must show progress within the limit."""
        self._phase, self._progress = phase, 0.0
        self.expect(limit_seconds)
        self.beat()

    def progress(self, share: float) -> None:
        """Report the finished share of a phase, 0 to 1; this renews its limit."""
        self._progress = share
        self.expect(self._limit)

    def expect(self, limit_seconds: float | None, step: int | None = None) -> None:
        """Expect progress within the limit; None: the main thread waits for other ranks, without limit."""
        self._limit = limit_seconds or 0.0
        self._deadline = None if not limit_seconds else time.monotonic() + limit_seconds
        if step is not None:
            self._step = step

    def beat(self) -> None:
        """Send a heartbeat now."""
        self._write(
            {
                "event": "heartbeat",
                "rank": self._rank,
                "phase": self._phase,
                "step": self._step,
                "progress": round(self._progress, 3),
                "memory_bytes": self.memory_bytes,
            }
        )

    def _write(self, line: dict[str, Any]) -> None:
        if not self._has_supervisor:
            return
        try:
            with self._write_lock:
                sys.stdout.write(json.dumps(line) + "\n")
                sys.stdout.flush()
        except OSError:
            os._exit(EXIT_SUPERVISOR_GONE)

    def _run(self) -> None:
        next_beat = last_word_at = time.monotonic()
        lines = SettingsLines(self._tell_listeners)
        while True:
            wait_seconds = max(0.0, next_beat - time.monotonic())
            if self._has_supervisor:
                ready, _, _ = select.select([0], [], [], wait_seconds)
                data = os.read(0, 65536) if ready else b""
                if ready and not data:
                    os._exit(EXIT_SUPERVISOR_GONE)
                last_word_at = time.monotonic() if data else last_word_at
                self._check_pings(last_word_at)
                lines.feed(data)
            else:
                threading.Event().wait(wait_seconds)
            if time.monotonic() >= next_beat:
                next_beat = time.monotonic() + HEARTBEAT_SECONDS
                self._check_deadline()
                self.beat()

    def _check_pings(self, last_word_at: float) -> None:
        if self._ping_limit_s is not None and time.monotonic() - last_word_at > self._ping_limit_s:
            say(f"rank {self._rank}: no ping from the supervisor's host for {self._ping_limit_s:g} s; ending")
            os._exit(EXIT_SUPERVISOR_GONE)

    def _tell_listeners(self, values: dict[str, Any]) -> None:
        with self._settings_lock:
            self._values |= values
            for listener in self._listeners:
                listener(values)

    def _check_deadline(self) -> None:
        deadline = self._deadline
        if deadline is None or time.monotonic() < deadline:
            return
        say(f"rank {self._rank}: no progress in {self._phase} for {self._limit:g} s; ending")
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        os._exit(EXIT_WATCHDOG)
