"""Records which files a process cannot write now. Such trouble is logged once and never ends the process.

A full, failing or read-only disk refuses a status file each second. The next regular write is the retry. The
log has one line when the trouble begins or changes, and one when it ends. Knows nothing of the files'
content.
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
    errno.EACCES: "give this user write permission there (chown, chmod)",
    errno.EPERM: "give this user write permission there (chown, chmod)",
    errno.EMFILE: "allow this user more open files: ulimit -n 4096",
    errno.ENFILE: "the whole system has no open files left",
    errno.EIO: "the disk is failing: see the system's log",
    errno.EAGAIN: "allow this user more processes and threads: ulimit -u",
    errno.ENOMEM: "this machine, or `ulimit -v`, leaves too little memory",
}

logger = logging.getLogger(__name__)


class DiskTroubles:
    """The troubles of one process and their reasons; its status file shows `sentences`."""

    def __init__(self) -> None:
        self._reasons: dict[str, str] = {}

    def sentences(self, for_file: str = "") -> list[str]:
        """Return a sentence for each trouble, except for the file that contains them."""
        own = _cannot_write(for_file)
        return [f"{what}: {reason}" for what, reason in self._reasons.copy().items() if what != own]

    @contextmanager
    def guard(self, what: str) -> Iterator[None]:
        """Run an optional write, and record the error where the disk refuses it."""
        try:
            yield
        except OSError as error:
            self.note(_cannot_write(what), describe_os_error(error))
        else:
            self.clear(_cannot_write(what))

    def note(self, trouble: str, reason: str) -> None:
        """Record a trouble with its reason; log it where it is new."""
        if self._reasons.get(trouble) != reason:
            self._reasons[trouble] = reason
            logger.warning("%s: %s; retrying", trouble, reason)

    def clear(self, trouble: str) -> None:
        """Remove a trouble that is over; log its end."""
        if self._reasons.pop(trouble, None) is not None:
            logger.info("no longer: %s", trouble)


def _cannot_write(what: str) -> str:
    return f"{what} cannot be written"


def describe_os_error(error: OSError) -> str:
    """Return the system's reason, without the path."""
    return os.strerror(error.errno) if error.errno else str(error) or type(error).__name__


def is_of_system(error: OSError) -> bool:
    """Whether the disk, the memory or a limit caused the error, and not a program."""
    return error.errno in _REMEDIES


def is_passing(error: OSError) -> bool:
    """Whether a retry may succeed: true for every system error except missing permissions."""
    return is_of_system(error) and error.errno not in (errno.EACCES, errno.EPERM)


def describe_refused(error: OSError, path: Path | str | None = None) -> str:
    """Return a sentence with the file, the system's reason, and the fix."""
    where, remedy = path or error.filename, _REMEDIES.get(error.errno or 0)
    return f"{f'{where}: ' if where else ''}{describe_os_error(error)}{f'; {remedy}' if remedy else ''}"
