"""Doorbells: "look again", between processes, in tens of microseconds.

A bell is a Unix datagram socket in bell/. Rank 0 listens at `rank0`, a front door at `door-<pid>-<random>`.
A ring says nothing more and may be lost: the spool's folders are the truth, a rescan every poll interval the
safety net.

A socket's path must be shorter than 104 bytes (macOS). Where bell/ is too deep for that, the sockets lie in
a private folder under /tmp, and bell/PATH names it. A socket is bound under a hidden name and renamed into
place, so nobody ever finds a bell that does not listen yet. It knows nothing of requests.
"""

from __future__ import annotations

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
_LISTENS = frozenset(
    {errno.EAGAIN, errno.EWOULDBLOCK, errno.ENOBUFS}
)  # its queue is full: it will wake anyway


def make_door_name() -> str:
    """A name for this front door's bell that no other process has or had."""
    return f"{DOOR_PREFIX}{os.getpid()}-{secrets.token_hex(4)}"


class Doorbell:
    """A bell that this process listens at. Register `fileno()` with a selector; `drain()` before looking."""

    def __init__(self, folder: Path, name: str, fs: FileSystem | None = None) -> None:
        """Listen at `name`, taking the place of a bell of that name. Raises SpoolUnavailable."""
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
        """The descriptor that becomes readable when someone rings."""
        return self._socket.fileno()

    def drain(self) -> int:
        """Take all rings that are waiting; their number."""
        num_rings = 0
        while True:
            try:
                self._socket.recv(1)
            except BlockingIOError:
                return num_rings
            num_rings += 1

    def close(self) -> None:
        """Stop listening. The name is removed unless another bell has taken it."""
        if self._socket.fileno() < 0:
            return
        self._socket.close()
        if _inode(self._path, self._fs) == self._inode:
            self._fs.unlink(self._path)

    def __enter__(self) -> Doorbell:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def ring(folder: Path, name: str, fs: FileSystem | None = None) -> bool:
    """Ring one bell; whether someone listens there. Never raises: the next rescan finds what is new."""
    fs = fs or FileSystem()
    try:
        place = _find_place(folder, fs)
        return place is not None and _is_heard(fs.ring_bells([join(place, name)])[0])
    except OSError:
        return False


def ring_all(folder: Path, prefix: str, fs: FileSystem | None = None) -> int:
    """Ring every bell whose name begins so; how many heard. Bells of dead front doors are removed."""
    fs = fs or FileSystem()
    try:
        place = _find_place(folder, fs)
        names = [name for name in fs.names(place) if name.startswith(prefix)] if place is not None else []
        if place is None or not names:
            return 0
        outcomes = fs.ring_bells([join(place, name) for name in names])
        for name, outcome in zip(names, outcomes, strict=True):
            # Only doors' names are never used again, so only theirs can be removed without a race.
            if outcome is not None and outcome.errno == errno.ECONNREFUSED and name.startswith(DOOR_PREFIX):
                fs.unlink(place / name)
        return sum(map(_is_heard, outcomes))
    except OSError:
        return 0


def _is_heard(outcome: OSError | None) -> bool:
    return outcome is None or outcome.errno in _LISTENS


def _inode(path: Path, fs: FileSystem) -> int | None:
    try:
        return fs.stat(path).st_ino
    except OSError:
        return None


def _is_short(folder: Path) -> bool:
    return len(f"{folder}".encode("utf-8", "surrogateescape")) + 1 + _MAX_NAME_BYTES <= MAX_PATH_BYTES


def _find_place(folder: Path, fs: FileSystem) -> Path | None:
    """The folder that the sockets lie in; None while nobody has listened yet."""
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
    """The folder that the sockets lie in, made and recorded if need be."""
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
    if place is None:  # a note to a folder that is gone
        fs.rename(note, folder / "PATH")
        return fresh
    fs.unlink(note)  # someone was quicker
    fs.remove_tree(fresh)
    return place
