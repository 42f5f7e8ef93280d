"""Names: request ids, the names of waiting and active files, and the clock that orders them.

    incoming/{priority}-{time_ns:020d}-{id}.json             first attempt
    incoming/{priority}-{time_ns:020d}-{id}.{attempt}.json   put back by a recovery; the next attempt's number
    active/{priority}-{time_ns:020d}-{id}.{attempt}.json

`time_ns` is max(last + 1, now) within a process, so a clock that jumps back reorders nothing that one
process accepted. Sorting names as text sorts by priority, then time. It knows nothing of files' content.
"""

from __future__ import annotations

import re
import threading
import time
from dataclasses import dataclass, replace

MAX_ATTEMPT = 999_999
_ID = re.compile(r"[0-9a-f]{32}")
_NAME = re.compile(r"([0-9])-([0-9]{20})-([0-9a-f]{32})(?:\.([1-9][0-9]{0,5}))?\.json")


def is_id(text: str) -> bool:
    """Whether this is an id as we make them: uuid4().hex."""
    return _ID.fullmatch(text) is not None


def check_id(text: str) -> str:
    """Give the id back. Raises ValueError for anything that is no id, before it can become part of a path."""
    if not is_id(text):
        raise ValueError("a request id is 32 characters of 0-9a-f")
    return text


def is_entry_name(name: str) -> bool:
    """Whether `EntryName.parse` would read it; much cheaper."""
    return _NAME.fullmatch(name) is not None


@dataclass(frozen=True)
class EntryName:
    """The name of a request's file while it waits or is worked on. attempt counts claims, from 1."""

    priority: int
    time_ns: int
    id: str
    attempt: int = 1

    @classmethod
    def parse(cls, name: str) -> EntryName | None:
        """Read a file's name; None when it is not one of ours."""
        match = _NAME.fullmatch(name)
        if match is None:
            return None
        return cls(int(match[1]), int(match[2]), match[3], int(match[4] or 1))

    @property
    def waiting(self) -> str:
        """The name in incoming/."""
        return f"{self._stem}.json" if self.attempt == 1 else self.active

    @property
    def active(self) -> str:
        """The name in active/."""
        return f"{self._stem}.{self.attempt}.json"

    @property
    def _stem(self) -> str:
        return f"{self.priority}-{self.time_ns:020d}-{self.id}"

    def next_attempt(self) -> EntryName:
        """The same request, to be claimed once more."""
        return replace(self, attempt=min(self.attempt + 1, MAX_ATTEMPT))


class NameClock:
    """Nanoseconds since 1970 that never repeat and never run backwards in this process."""

    def __init__(self) -> None:
        self._last_ns = 0
        self._lock = threading.Lock()

    def next_ns(self) -> int:
        """Take the next moment."""
        with self._lock:
            self._last_ns = max(self._last_ns + 1, time.time_ns())
            return self._last_ns
