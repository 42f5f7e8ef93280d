"""Describes the progress of the copies of model files, host by host; knows nothing of how they are made."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from cluster.terminal import format_bytes, make_bar

# Reported again after this much more, and at the end.
STEP_SHARE = 0.05


@dataclass
class _Work:
    what: str
    since: float
    shown_share: float = -1.0


@dataclass
class CopyProgress:
    """Turns the reports of `ensure_models` into text: a bar, bytes and speed."""

    say: Callable[[str, str], None]
    clock: Callable[[], float] = time.monotonic
    _works: dict[str, _Work] = field(default_factory=dict)

    def report(self, host: str, done_bytes: int, total_bytes: int, what: str) -> None:
        """Take one report."""
        work = self._works.get(host)
        if work is None or work.what != what:
            work = self._works[host] = _Work(what, self.clock())
        share = done_bytes / total_bytes if total_bytes else 1.0
        if share < 1.0 and share - work.shown_share < STEP_SHARE:
            return
        work.shown_share = share
        seconds = self.clock() - work.since
        speed = f", {format_bytes(done_bytes / seconds)}/s" if done_bytes and seconds > 0 else ""
        self.say(host, f"{what} {make_bar(share)} of {format_bytes(total_bytes)}{speed}")
