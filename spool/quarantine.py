"""Quarantine: what does not belong in the spool is moved into bad/, as it is and whatever it is.

Nothing is deleted before it is old (sweep.py), and what cannot be moved is told once and then left alone.
This room knows nothing of why a thing is foreign.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from spool.spool import Spool

_log = logging.getLogger(__name__)


class Quarantine:
    """The way into bad/."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._immovable: set[Path] = set()

    def is_immovable(self, path: Path) -> bool:
        """Whether this could not be moved before."""
        return path in self._immovable

    def take(self, path: Path, reason: str) -> None:
        """Move something into bad/ under a name that is free. The reason goes to the log."""
        if path in self._immovable:
            return
        stem = os.fsdecode(os.fsencode(path.name)[:180])
        target = self._spool.folder.bad / f"{stem}.{self._spool.clock.next_ns()}"
        try:
            self._spool.fs.rename(path, target)
        except FileNotFoundError:
            return
        except OSError as error:
            self.give_up(path, f"is foreign ({reason}) and cannot be moved: {error.strerror}")
            return
        _log.warning("moved %a from %s/ to bad/: %s", path.name, path.parent.name, reason)

    def give_up(self, path: Path, reason: str) -> None:
        """Leave a thing where it is, and say so once."""
        self._immovable.add(path)
        _log.error("%a in %s/ %s", path.name, path.parent.name, reason)
