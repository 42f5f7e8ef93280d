"""Doorbells: one process wakes another, which then reads the spool's folders again.

A bell is a Unix datagram socket in bell/. Rank 0 listens at `rank0`, a front door at `door-<pid>-<random>`.
The datagram is empty and may be lost: listeners also rescan the folders every poll interval.

A socket's path must be shorter than 104 bytes (macOS). Where bell/ is too deep for that, the sockets lie in
a private folder under /tmp, and bell/PATH names it. A socket is bound under a hidden name and then renamed,
so a visible bell always listens. Knows nothing of requests.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from pathlib import Path

from spool.errors import SpoolUnavailable
from spool.fsio import FileSystem, NotPlainFile, join

RANK0 = "rank0"
DOOR_PREFIX = "door-"
MAX_PATH_BYTES = 103
_MAX_NAME_BYTES = 24  # the longest name: hidden, of a door, with a pid of 7 digits
_FULL_QUEUE_ERRORS = frozenset({errno.EAGAIN, errno.EWOULDBLOCK, errno.ENOBUFS})  # the listener will wake


def make_door_name() -> str:
    """Return a name for this front door's bell that no other process has or had."""
    return f"{DOOR_PREFIX}{os.getpid()}-{secrets.token_hex(4)}"


class Doorbell:
    """A bell at which this process listens. Register `fileno()` with a selector; `drain()`, then read."""

    def __init__(self, folder: Path, name: str, fs: FileSystem | None = None) -> None:
        """Listen at `name`, and replace an earlier bell of that name. Raises SpoolUnavailable."""
        self._fs = fs or FileSystem()
        try:
            place = _make_place(folder, self._fs)
            hidden = place / f".{name}"
            self._path = place / name
            self._fs.unlink(hidden)
            self._socket = self._fs.bind_bell(hidden)
            self._fs.rename(hidden, self._path)
            self._inode = self._fs.stat(self._path).st_ino
        except OSError as error:
            raise SpoolUnavailable.from_os_error("listen at a doorbell", error) from error

    def fileno(self) -> int:
        """Return the descriptor that becomes readable when a process rings."""
        return self._socket.fileno()

    def drain(self) -> int:
        """Take all pending rings, and return their number."""
        num_rings = 0
        while True:
            try:
                self._socket.recv(1)
            except BlockingIOError:
                return num_rings
            num_rings += 1

    def ring(self) -> None:
        """Wake the listener from another thread of its own process."""
        self._fs.ring_bells([str(self._path)])

    def close(self) -> None:
        """Stop listening, and remove the name unless another bell has taken it."""
        if self._socket.fileno() < 0:
            return
        self._socket.close()
        with contextlib.suppress(OSError):
            if self._fs.stat(self._path).st_ino == self._inode:
                self._fs.unlink(self._path)

    def __enter__(self) -> Doorbell:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def ring(folder: Path, name: str, fs: FileSystem | None = None) -> bool:
    """Ring one bell; return whether a process listens there. Never raises: a rescan finds what is new."""
    fs = fs or FileSystem()
    try:
        place = _find_place(folder, fs)
        return place is not None and _is_heard(fs.ring_bells([join(place, name)])[0])
    except OSError:
        return False


def ring_all(folder: Path, prefix: str, fs: FileSystem | None = None) -> int:
    """Ring every bell with this prefix, and return how many heard. Remove the bells of dead front doors."""
    fs = fs or FileSystem()
    try:
        place = _find_place(folder, fs)
        names = [name for name in fs.names(place) if name.startswith(prefix)] if place is not None else []
        if place is None or not names:
            return 0
        outcomes = fs.ring_bells([join(place, name) for name in names])
        for name, outcome in zip(names, outcomes, strict=True):
            # Front doors never reuse a name, so only their bells can be removed without a race.
            if outcome is not None and outcome.errno == errno.ECONNREFUSED and name.startswith(DOOR_PREFIX):
                fs.unlink(place / name)
        return sum(map(_is_heard, outcomes))
    except OSError:
        return 0


def _is_heard(outcome: OSError | None) -> bool:
    return outcome is None or outcome.errno in _FULL_QUEUE_ERRORS


def _is_short(folder: Path) -> bool:
    return len(f"{folder}".encode("utf-8", "surrogateescape")) + 1 + _MAX_NAME_BYTES <= MAX_PATH_BYTES


def _find_place(folder: Path, fs: FileSystem) -> Path | None:
    """Return the folder of the sockets; None while no process has listened yet."""
    if _is_short(folder):
        return folder
    try:
        place = Path(os.fsdecode(fs.read(folder / "PATH", MAX_PATH_BYTES)))
        info = fs.stat(place)
    except (OSError, NotPlainFile, ValueError):
        return None
    is_private = stat.S_ISDIR(info.st_mode) and info.st_uid == os.geteuid() and not info.st_mode & 0o077
    return place if is_private and _is_short(place) else None


def _make_place(folder: Path, fs: FileSystem) -> Path:
    """Return the folder of the sockets; make and record it where it is missing."""
    place = _find_place(folder, fs)
    if place is not None:
        return place
    fresh = Path("/tmp") / f"bell-{secrets.token_hex(8)}"
    fs.make_folder(fresh)
    note = folder / f".PATH-{secrets.token_hex(4)}"
    fs.write_new(note, os.fsencode(fresh), is_synced=False)
    if fs.link(note, folder / "PATH"):
        fs.unlink(note)
        return fresh
    place = _find_place(folder, fs)
    if place is None:  # PATH names a folder that is gone
        fs.rename(note, folder / "PATH")
        return fresh
    fs.unlink(note)  # another process was faster
    fs.remove_tree(fresh)
    return place
