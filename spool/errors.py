"""The spool's errors, a branch of the tree in config/errors.py.

SpoolError               500 spool_error
├── SpoolRefused         500 spool_refused         the folder cannot be a spool; stops the start
├── SpoolLocked          500 spool_locked          another process owns the spool; stops the start
├── SpoolFull            429 rate_limit_exceeded   the queue is at a limit: retry later
├── IdempotencyConflict  409 idempotency_conflict  the key was used for another request body
├── SpoolUnavailable     503 overloaded, 507 disk_full, …  the disk or the system refused; retry
├── CorruptRequest       500 corrupt               a file does not match its checksum
└── LogCut               500 reset                 a token log lost tokens that a reader had already seen
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from config.disk_trouble import NO_ROOM
from config.errors import SOON_SECONDS, ServiceError

_CODES = {
    **dict.fromkeys(NO_ROOM, ("disk_full", 507)),
    errno.EROFS: ("read_only", 503),
    errno.EMFILE: ("too_many_files", 503),
    errno.ENFILE: ("too_many_files", 503),
    errno.EIO: ("disk_error", 503),
    errno.EACCES: ("no_permission", 503),
    errno.EPERM: ("no_permission", 503),
}


@contextlib.contextmanager
def system_trouble(doing: str) -> Iterator[None]:
    """Raise the system's errors as SpoolUnavailable."""
    try:
        yield
    except OSError as error:
        raise SpoolUnavailable.from_os_error(doing, error) from error


class SpoolError(ServiceError):
    """The root of the errors that the spool raises on purpose."""

    code = "spool_error"


class SpoolRefused(SpoolError):
    """This folder cannot be a spool; the message says why and how to fix it. Stops the start."""

    code = "spool_refused"


class SpoolLocked(SpoolError):
    """Another process owns the spool. Stops the start."""

    code = "spool_locked"

    def __init__(self, root: str, pid: int | None) -> None:
        holder = f"process {pid}" if pid is not None else "another process"
        super().__init__(f"the spool {root} is owned by {holder}; stop that one first")
        self.pid = pid


class SpoolFull(SpoolError):
    """The queue is at its limit; the request was not accepted."""

    status, code = 429, "rate_limit_exceeded"
    retry_seconds = SOON_SECONDS


class IdempotencyConflict(SpoolError):
    """The idempotency key stands for a request with another body; nothing was accepted."""

    status, code = 409, "idempotency_conflict"
    param = "Idempotency-Key"


class SpoolUnavailable(SpoolError):
    """The disk or the system refused; `code` says why. `status` is 507 for a full disk, otherwise 503."""

    status, code = 503, "overloaded"
    retry_seconds = SOON_SECONDS

    @classmethod
    def from_os_error(cls, doing: str, error: OSError) -> SpoolUnavailable:
        """Name the operation and the system's reason, without any path that a client may have caused."""
        code, status = _CODES.get(error.errno or 0, (cls.code, cls.status))
        reason = os.strerror(error.errno) if error.errno else type(error).__name__
        return cls(f"cannot {doing}: {reason}", code=code, status=status)


class CorruptRequest(SpoolError):
    """A request or result file is damaged, foreign, or of an unknown version."""

    code = "corrupt"


class LogCut(SpoolError):
    """The log lost tokens that this reader has returned; the reader starts over from the first token."""

    code = "reset"
