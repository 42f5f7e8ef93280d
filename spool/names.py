"""Names: request ids, the names of waiting and active files, and the clock that orders them.

    incoming/{priority}-{time_ns:020d}-{id}.json                                          first attempt
    incoming/{priority}-{time_ns:020d}-{id}.{attempt}[.s{crashes}].json                   put back
    active/{priority}-{time_ns:020d}-{id}.{attempt}[.s{crashes}][.t{tokens}][.solo].json  claimed
    cancel/{id}[.{time_ns:020d}]                                        to be stopped, now or from then on

    .s{crashes}  a suspect: its owner died while it was active and it made no new token; how many of these
                 deaths came while it ran alone
    .t{tokens}   the tokens in its log when it was claimed (or marked solo), if any: "new" is what came since
    .solo        it runs alone

`time_ns` is max(last + 1, now) within a process, so a clock that jumps back reorders nothing that one
process accepted. Sorting names as text sorts by priority, then time. It knows nothing of files' content.
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
MAX_SOLO_CRASHES = 3  # so many and the request is poison
_NAME = re.compile(
    r"([0-9])-([0-9]{20})-([0-9a-f]{32})"
    r"(?:\.([1-9][0-9]{0,5}))?(?:\.s([0-9]))?(?:\.t([1-9][0-9]{0,8}))?(\.solo)?\.json"
)


def make_id() -> str:
    """A request id that nothing else has or will have: 128 random bits."""
    return os.urandom(16).hex()


def is_id(text: str) -> bool:
    """Whether this is an id as `make_id` makes them."""
    return _ID.fullmatch(text) is not None


def check_id(text: str) -> str:
    """Give the id back. Raises ValueError for anything that is no id, before it can become part of a path."""
    if not is_id(text):
        raise ValueError("a request id is 32 characters of 0-9a-f")
    return text


def id_of(name: str) -> str:
    """The id in a name that `is_entry_name`; much cheaper than `EntryName.parse`."""
    return name[_ID_START : _ID_START + 32]


def marker_name(id: str, moment_ns: int | None = None) -> str:
    """Name the wish that a request be stopped, at a moment or now."""
    return id if moment_ns is None else f"{id}.{moment_ns:020d}"


def marked_id(name: str) -> str:
    """The id in a name that `marker_name` made."""
    return name.partition(".")[0]


def is_due(name: str, now_ns: int) -> bool:
    """Whether a marker of this name counts by now; names are compared as text, as everywhere."""
    return is_id(marked_id(name)) and name <= marker_name(marked_id(name), now_ns)


def is_entry_name(name: str) -> bool:
    """Whether `EntryName.parse` would read it; much cheaper."""
    return _NAME.fullmatch(name) is not None


@dataclass(frozen=True)
class EntryName:
    """The name of a request's file while it waits or is worked on.

    attempt counts claims, from 1. num_tokens and is_solo are of an active file; num_solo_crashes is more than
    0 for a suspect only.
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
        """Read a file's name; None when it is not one of ours."""
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
        """The same request, waiting again; a new token clears it of suspicion. num_tokens: in its log now."""
        back = replace(self, num_tokens=0, is_solo=False)
        if num_tokens > self.num_tokens:
            back = replace(back, is_suspect=False, num_solo_crashes=0)
        return back

    def after_crash(self, num_tokens: int, *, has_run: bool, was_power_cut: bool = False) -> EntryName:
        """The same request, waiting for its next attempt after its owner died. num_tokens: in its log now.

        Without a new token it is a suspect, if it was among those that ran; if it ran alone, the death
        counts, unless the whole machine went down. A log that is shorter than it was tells of that, too.
        """
        back = replace(self.put_back(num_tokens), attempt=min(self.attempt + 1, MAX_ATTEMPT))
        if num_tokens > self.num_tokens or not has_run:
            return back
        is_proven = self.is_solo and num_tokens == self.num_tokens and not was_power_cut
        num_solo_crashes = min(self.num_solo_crashes + is_proven, MAX_SOLO_CRASHES)
        return replace(back, is_suspect=True, num_solo_crashes=num_solo_crashes)


def judge(entries: list[tuple[EntryName, int]], *, was_power_cut: bool) -> list[tuple[EntryName, EntryName]]:
    """How each request waits after a crash; entries are names with the tokens in their logs.

    While one ran alone and had no new token, the others did not run. It comes last: a death half way
    through the requeueing must still find it.
    """
    alone = [name for name, num_tokens in entries if name.is_solo and num_tokens <= name.num_tokens]
    entries = sorted(entries, key=lambda entry: entry[0] in alone)
    return [
        (name, name.after_crash(num, has_run=not alone or name in alone, was_power_cut=was_power_cut))
        for name, num in entries
    ]


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
