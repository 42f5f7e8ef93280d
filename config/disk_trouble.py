"""What a process cannot write at present: noted, logged once, and never its end.

A full, broken or read-only disk refuses a status file each second. A guarded write is tried again at its next
occasion; the log has one line when the trouble begins or changes, and one when it is over. This file does not
know what is written.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})
_REMEDIES = {
    errno.ENOSPC: "make room on that disk (df -h, df -i), or choose another folder with STATE_DIR in .env",
    errno.EDQUOT: "make room within this user's quota, or choose another folder with STATE_DIR in .env",
    errno.EROFS: "mount that disk for writing, or choose another folder with STATE_DIR in .env",
    errno.EACCES: "give this user the right to write there (chown, chmod)",
    errno.EPERM: "give this user the right to write there (chown, chmod)",
    errno.EMFILE: "allow this user more open files: ulimit -n 4096",
    errno.ENFILE: "the whole system has no open files left",
    errno.EIO: "the disk is failing: see the system's log",
    errno.EAGAIN: "allow this user more processes and threads: ulimit -u",
    errno.ENOMEM: "this machine, or `ulimit -v`, leaves too little memory",
}

logger = logging.getLogger(__name__)


class DiskTroubles:
    """The troubles of one process and their reasons; `sentences` is what its status file shows."""

    def __init__(self) -> None:
        self._reasons: dict[str, str] = {}

    def sentences(self, for_file: str = "") -> list[str]:
        """One sentence for each; a file that can be read needs no word about itself."""
        own = _cannot_write(for_file)
        return [f"{what}: {reason}" for what, reason in self._reasons.copy().items() if what != own]

    @contextmanager
    def guard(self, what: str) -> Iterator[None]:
        """Run a write that the process can do without; what the disk says against it is noted."""
        try:
            yield
        except OSError as error:
            self.note(_cannot_write(what), describe_os_error(error))
        else:
            self.clear(_cannot_write(what))

    def note(self, trouble: str, reason: str) -> None:
        """Something does not work for a reason; logged where this is new."""
        if self._reasons.get(trouble) != reason:
            self._reasons[trouble] = reason
            logger.warning("%s: %s; it is tried again", trouble, reason)

    def clear(self, trouble: str) -> None:
        """It works; logged where it did not before."""
        if self._reasons.pop(trouble, None) is not None:
            logger.info("no longer: %s", trouble)


def _cannot_write(what: str) -> str:
    return f"{what} cannot be written"


def describe_os_error(error: OSError) -> str:
    """What the system says, without the path."""
    return os.strerror(error.errno) if error.errno else str(error) or type(error).__name__


def is_of_system(error: OSError) -> bool:
    """Whether disk, memory or limits are at fault and not a program."""
    return error.errno in _REMEDIES


def is_passing(error: OSError) -> bool:
    """Whether it may be over at the next try, with nothing changed by us: all but missing rights."""
    return is_of_system(error) and error.errno not in (errno.EACCES, errno.EPERM)


def describe_refused(error: OSError, path: Path | str | None = None) -> str:
    """A sentence for whoever has to fix what the system refuses: the file, the reason, the remedy."""
    where, remedy = path or error.filename, _REMEDIES.get(error.errno or 0)
    return f"{f'{where}: ' if where else ''}{describe_os_error(error)}{f'; {remedy}' if remedy else ''}"
