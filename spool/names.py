"""Names: request ids, the names of waiting and active files, and the clock that orders them.

    incoming/{priority}-{time_ns:020d}-{id}.json                                          first attempt
    incoming/{priority}-{time_ns:020d}-{id}.{attempt}[.s{crashes}].json                   put back
    active/{priority}-{time_ns:020d}-{id}.{attempt}[.s{crashes}][.t{tokens}][.solo].json  claimed
    cancel/{id}[.{time_ns:020d}]                                        to be stopped now, or at that time

    .s{crashes}  a suspect: its owner died while it was active without a new token; the number counts the
                 deaths while it ran alone
    .t{tokens}   the tokens in its log when it was claimed (or marked solo), if any; later ones are "new"
    .solo        it runs alone

`time_ns` is max(last + 1, now) within a process, so a clock that jumps back does not reorder the requests of
one process. Sorting names as text sorts by priority, then time. Knows nothing of a file's content.
"""

from __future__ import annotations

import os
import re
import threading
import time
from dataclasses import dataclass, replace

MAX_ATTEMPT = 999_999
_ID = re.compile(r"[0-9a-f]{32}")
_ID_START = len("5-") + 20 + len("-")
LAST_PRIORITY = 9  # of 0 to 9: such a request gives way to all others
MAX_SOLO_CRASHES = 3  # a request with this many is poison
_NAME = re.compile(
    r"([0-9])-([0-9]{20})-([0-9a-f]{32})"
    r"(?:\.([1-9][0-9]{0,5}))?(?:\.s([0-9]))?(?:\.t([1-9][0-9]{0,8}))?(\.solo)?\.json"
)


def make_id() -> str:
    """Return a unique request id: 128 random bits."""
    return os.urandom(16).hex()


def is_id(text: str) -> bool:
    """Whether the text has the form of an id from `make_id`."""
    return _ID.fullmatch(text) is not None


def check_id(text: str) -> str:
    """Return the id. Raises ValueError for any other text, before it can become part of a path."""
    if not is_id(text):
        raise ValueError("a request id has 32 characters of 0-9a-f")
    return text


def id_of(name: str) -> str:
    """Return the id in a name that passes `is_entry_name`; faster than `EntryName.parse`."""
    return name[_ID_START : _ID_START + 32]


def marker_name(id: str, moment_ns: int | None = None) -> str:
    """Return the name of a cancel marker, for a moment or for now."""
    return id if moment_ns is None else f"{id}.{moment_ns:020d}"


def marked_id(name: str) -> str:
    """Return the id in a name from `marker_name`."""
    return name.partition(".")[0]


def is_due(name: str, now_ns: int) -> bool:
    """Whether the marker of this name has taken effect."""
    return is_id(marked_id(name)) and name <= marker_name(marked_id(name), now_ns)


def is_entry_name(name: str) -> bool:
    """Whether `EntryName.parse` would read this name; faster."""
    return _NAME.fullmatch(name) is not None


@dataclass(frozen=True)
class EntryName:
    """The name of a request's file while it waits or is active.

    attempt counts claims, from 1. Only an active file has num_tokens and is_solo; only a suspect has
    num_solo_crashes.
    """

    priority: int
    time_ns: int
    id: str
    attempt: int = 1
    is_suspect: bool = False
    num_solo_crashes: int = 0
    num_tokens: int = 0
    is_solo: bool = False

    @classmethod
    def parse(cls, name: str) -> EntryName | None:
        """Read a file's name; None where it is not a request's."""
        match = _NAME.fullmatch(name)
        if match is None:
            return None
        return cls(
            int(match[1]),
            int(match[2]),
            match[3],
            attempt=int(match[4] or 1),
            is_suspect=match[5] is not None,
            num_solo_crashes=int(match[5] or 0),
            num_tokens=int(match[6] or 0),
            is_solo=match[7] is not None,
        )

    @property
    def waiting(self) -> str:
        """The name in incoming/."""
        is_first = self.attempt == 1 and not self.is_suspect
        return f"{self._stem}.json" if is_first else f"{self._stem}.{self.attempt}{self._suspicion}.json"

    @property
    def active(self) -> str:
        """The name in active/."""
        tokens = f".t{self.num_tokens}" if self.num_tokens else ""
        solo = ".solo" if self.is_solo else ""
        return f"{self._stem}.{self.attempt}{self._suspicion}{tokens}{solo}.json"

    @property
    def _stem(self) -> str:
        return f"{self.priority}-{self.time_ns:020d}-{self.id}"

    @property
    def _suspicion(self) -> str:
        return f".s{self.num_solo_crashes}" if self.is_suspect else ""

    def put_back(self, num_tokens: int) -> EntryName:
        """Return the name with which it waits again; a new token clears suspicion. num_tokens: now logged."""
        back = replace(self, num_tokens=0, is_solo=False)
        if num_tokens > self.num_tokens:
            back = replace(back, is_suspect=False, num_solo_crashes=0)
        return back

    def after_crash(self, num_tokens: int, *, has_run: bool, was_power_cut: bool = False) -> EntryName:
        """Return the name with which it waits after its owner died. num_tokens: the tokens now in its log.

        A request that ran without a new token becomes a suspect. If it ran alone, the death counts, unless
        the whole machine went down; a log that became shorter shows that, too.
        """
        back = replace(self.put_back(num_tokens), attempt=min(self.attempt + 1, MAX_ATTEMPT))
        if num_tokens > self.num_tokens or not has_run:
            return back
        is_proven = self.is_solo and num_tokens == self.num_tokens and not was_power_cut
        num_solo_crashes = min(self.num_solo_crashes + is_proven, MAX_SOLO_CRASHES)
        return replace(back, is_suspect=True, num_solo_crashes=num_solo_crashes)


def judge(entries: list[tuple[EntryName, int]], *, was_power_cut: bool) -> list[tuple[EntryName, EntryName]]:
    """Return the name with which each request waits after a crash; entries are names with logged tokens.

    While one request ran alone without a new token, the others did not run. It comes last: a crash during the
    requeueing must still find it.
    """
    alone = [name for name, num_tokens in entries if name.is_solo and num_tokens <= name.num_tokens]
    entries = sorted(entries, key=lambda entry: entry[0] in alone)
    return [
        (name, name.after_crash(num, has_run=not alone or name in alone, was_power_cut=was_power_cut))
        for name, num in entries
    ]


class NameClock:
    """Nanoseconds since 1970 that never repeat and never decrease in this process."""

    def __init__(self) -> None:
        self._last_ns = 0
        self._lock = threading.Lock()

    def next_ns(self) -> int:
        """Return the next time."""
        with self._lock:
            self._last_ns = max(self._last_ns + 1, time.time_ns())
            return self._last_ns
