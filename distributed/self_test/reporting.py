"""What a part of the self-test gets, and how it reports: a Task, and a Report of named lines.

    {"name": "fsync", "text": "median 0.41 ms, p95 0.93 ms", "failed": false, "figures": {"median_ms": 0.41}}

A line that fails does not end the part. `peer` is a second process of a part. Knows nothing of what is
measured.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from config import REPOSITORY_ROOT, Settings
from config.live import load_inherited_settings
from distributed.self_test.sizes import SIZES, Size

READY = b"ready\n"
PEER_LIMIT_S = 10.0


@dataclass(frozen=True)
class Task:
    """The order to a part: where it may write, which model it measures, how much it does."""

    folder: Path
    model: Path  # a model folder; the seeded one is made there
    size: str  # a key of SIZES
    hosts: tuple[str, ...] = ()  # address:port of two ranks

    @classmethod
    def from_json(cls, text: str) -> Task:
        """Read what `to_json` wrote."""
        return msgspec.json.decode(text, type=cls, dec_hook=lambda kind, value: kind(value))

    def to_json(self) -> str:
        """Write the task as an argument of a program."""
        return json.dumps(asdict(self), default=str)

    @property
    def amounts(self) -> Size:
        return SIZES[self.size]

    @property
    def settings(self) -> Settings:
        """The settings that the command passed on."""
        return load_inherited_settings()

    def for_model(self, model: Path) -> Task:
        """Return the task for another model folder."""
        return replace(self, model=model)


class Report:
    """Writes lines to a function, as dicts."""

    def __init__(self, write: Callable[[dict[str, Any]], None]) -> None:
        self._write = write

    def line(
        self, name: str, text: str, figures: Mapping[str, Any] | None = None, *, failed: bool = False
    ) -> None:
        """Report one line."""
        self._write({"name": name, "text": text, "failed": failed, "figures": figures or {}})

    @contextlib.contextmanager
    def attempt(self, name: str) -> Iterator[None]:
        """Report a failure under this name, and go on behind the block."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - whatever fails is a line of the report
            self.line(name, f"failed: {describe(error)}", failed=True)

    def times(self, name: str, parts: Mapping[str, float], note: str = "") -> None:
        """Report times in seconds under their names, as `first 12.1 ms, second 3.40 ms`."""
        text = ", ".join(f"{part.replace('_', ' ')} {format_ms(value)}" for part, value in parts.items())
        figures = {f"{part}_ms": round(value * 1000, 4) for part, value in parts.items()}
        self.line(name, f"{text}{note}", figures)

    def spread(self, name: str, seconds: Sequence[float], note: str = "") -> None:
        """Report median and p95 of times."""
        ordered = sorted(seconds)
        p95 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))]
        self.times(name, {"median": statistics.median(ordered), "p95": p95}, note)


def describe(error: BaseException) -> str:
    """Return an error as one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def format_ms(seconds: float) -> str:
    """Return `0.041 ms`, `2.41 ms`, `318 ms`."""
    ms = seconds * 1000
    return f"{ms:.3f} ms" if ms < 1 else f"{ms:.2f} ms" if ms < 100 else f"{ms:.0f} ms"


def format_mb(num_bytes: float) -> str:
    """Return `512 MB`, `1.3 MB`."""
    return f"{num_bytes / 1e6:.0f} MB" if num_bytes >= 1e7 else f"{num_bytes / 1e6:.1f} MB"


@contextlib.contextmanager
def peer(name: str, task: Task) -> Iterator[subprocess.Popen[bytes]]:
    """Run another part as a process beside this one; it ends when its standard input does.

    Raises:
        RuntimeError: it ended before it was ready.
    """
    command = [sys.executable, "-m", "distributed.self_test", name, task.to_json()]
    with subprocess.Popen(
        command, cwd=REPOSITORY_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            yield process
        finally:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            try:
                process.wait(PEER_LIMIT_S)
            except subprocess.TimeoutExpired:
                process.kill()


def say_ready() -> None:
    """Tell the part that started this peer."""
    sys.stdout.buffer.write(READY)
    sys.stdout.buffer.flush()


def await_ready(process: subprocess.Popen[bytes]) -> None:
    """Wait for a peer's word. Raises: RuntimeError: it ended before."""
    assert process.stdout is not None
    if process.stdout.readline() != READY:
        raise RuntimeError("the second process ended before it was ready")
