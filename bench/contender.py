"""What every contender is, and the errors and clean-up they share.

A contender starts one server, says where it listens, and stops it whatever happens. Knows no server by name.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

from bench.load import Server

ROOT = Path(__file__).resolve().parent.parent
NUM_LOG_LINES = 15


class BenchError(Exception):
    """A sentence for the person who typed the command; the bench ends with it."""


class Contender(Protocol):
    """A server that can be measured; `running` has stopped it when it returns or raises."""

    name: str

    def running(self) -> AbstractContextManager[Server]: ...

    def describe(self) -> Mapping[str, Any]: ...


def without_root(text: str) -> str:
    """A value as a report shows it: paths of the project without the folder that it lies in."""
    return text.replace(f"{ROOT}/", "")


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let nobody's second Ctrl-C cut a clean-up short; every clean-up is bounded in time."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def last_lines(paths: Sequence[Path]) -> str:
    """The ends of some logs, for an error."""
    parts = []
    for path in paths:
        try:
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[-NUM_LOG_LINES:]
        except OSError:
            continue
        parts += [f"The last lines of {path}:", *(f"    {line}" for line in lines)]
    return "\n".join(parts)
