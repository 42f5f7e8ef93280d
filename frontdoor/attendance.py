"""Who still attends to a request, told between front doors in the folder STATE_DIR/run/attended.

    {door}             held with flock by that front door while it lives; the kernel releases it at its death
    {id}.{door}        a client of that front door is attached to the request

A client may come back through another front door than the one it left, and that one may have been started
in its place: the front door that wants to cancel looks here first. One descriptor a process, however many
clients there are. Knows ids and one folder; nothing of connections or timers.
"""

import fcntl
import logging
import os
import secrets
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_MAX_TRIES = 8

log = logging.getLogger(__name__)


class Attendance:
    """One front door's part of the folder. What the system refuses only costs the others' knowledge."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._door = f"{os.getpid()}-{secrets.token_hex(4)}"
        self._fd: int | None = None
        self._num_attached: Counter[str] = Counter()

    @contextmanager
    def attend(self, request_id: str) -> Iterator[None]:
        """Tell every front door that a client is there, until the block ends."""
        marker = self._folder / f"{request_id}.{self._door}"
        self._num_attached[request_id] += 1
        try:
            self._open()
            os.close(os.open(marker, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        except OSError as error:
            log.warning("request %s: other front doors cannot be told of its client: %s", request_id, error)
        try:
            yield
        finally:
            self._num_attached[request_id] -= 1
            if not self._num_attached[request_id]:
                del self._num_attached[request_id]
                with suppress(OSError):
                    marker.unlink()

    def is_attended(self, request_id: str) -> bool:
        """Tell whether a client of any living front door is attached to the request."""
        if self._num_attached[request_id]:
            return True
        prefix = f"{request_id}."
        doors = [name.removeprefix(prefix) for name in self._names() if name.startswith(prefix)]
        return any(door != self._door and self._is_alive(door) for door in doors)

    def close(self) -> None:
        """Leave nothing behind."""
        if self._fd is not None:
            with suppress(OSError):
                (self._folder / self._door).unlink()
            os.close(self._fd)
            self._fd = None

    def _open(self) -> None:
        """Take the lock that says that we live, once, and clear away what the dead have left."""
        if self._fd is not None:
            return
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = self._folder / self._door
        for _ in range(_MAX_TRIES):
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            if _lock(fd, fcntl.LOCK_EX) and path.exists():
                self._fd = fd
                break
            os.close(fd)  # another one looked, between our two calls, whether we live
        self._clear()

    def _clear(self) -> None:
        names = self._names()
        doors = {name.rpartition(".")[2] for name in names} - {self._door}
        dead = {door for door in doors if not self._is_alive(door)}
        for name in names:
            if name.rpartition(".")[2] in dead:
                with suppress(OSError):
                    (self._folder / name).unlink()

    def _is_alive(self, door: str) -> bool:
        try:
            fd = os.open(self._folder / door, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            return not _lock(fd, fcntl.LOCK_SH)
        finally:
            os.close(fd)

    def _names(self) -> list[str]:
        try:
            return os.listdir(self._folder)
        except OSError:
            return []


def _lock(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
