"""Quarantine: foreign and damaged files move into bad/ unchanged.

The sweep deletes them when they are old. A file that cannot be moved is logged once and then left alone.
Knows nothing of why a file is foreign.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from spool.spool import Spool

_log = logging.getLogger(__name__)


class Quarantine:
    """Moves files into bad/."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._immovable: set[Path] = set()

    def is_immovable(self, path: Path) -> bool:
        """Whether an earlier attempt to move this file failed."""
        return path in self._immovable

    def take(self, path: Path, reason: str) -> None:
        """Move a file into bad/ under a free name, and log the reason."""
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
        """Leave a file where it is, and log that once."""
        self._immovable.add(path)
        _log.error("%a in %s/ %s", path.name, path.parent.name, reason)
