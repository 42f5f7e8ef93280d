"""Decides whether one more request may be accepted: the queue's limits and the free space on the disk.

Several front doors share one spool. Each counts the waiting files itself, so together they may pass a limit
by the requests that they accept at the same moment. Knows names and sizes, and nothing of a file's content.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from spool.errors import SpoolFull, SpoolUnavailable
from spool.folder import SpoolFolder, list_names
from spool.fsio import FileSystem, join
from spool.names import id_of, is_entry_name

MAX_REQUEST_BYTES = 64 * 2**20  # the largest request file that a claim reads
_MIN_FREE_FILES = 64


@dataclass(frozen=True)
class DiskLimits:
    """The free space that a request needs on the disk, and the size of the ballast for results."""

    min_free_bytes: int = 64 * 2**20
    ballast_bytes: int = 2**20


class Admission:
    """Reserves places in the queue. Safe to use from several threads; the limits may change at any time."""

    def __init__(
        self, folder: SpoolFolder, fs: FileSystem, *, max_depth: int, max_bytes: int, disk: DiskLimits
    ) -> None:
        self.max_depth = max_depth
        self.max_bytes = max_bytes
        self.disk = disk
        self._folder = folder
        self._fs = fs
        self._lock = threading.Lock()
        self._num_held = 0
        self._num_held_bytes = 0
        self._sizes: dict[str, int] = {}  # of waiting files, by name: a file never changes

    @contextlib.contextmanager
    def holding(self, num_bytes: int) -> Iterator[None]:
        """Reserve a place for a file that the block publishes.

        While the block runs, a published file counts twice: near a limit another thread may be refused early.

        Raises:
            SpoolFull: over the count or byte limit.
            SpoolUnavailable: the request is too large, or the disk has too little space.
        """
        if num_bytes > MAX_REQUEST_BYTES:
            raise SpoolUnavailable(
                f"the request takes {num_bytes} bytes in the spool; at most {MAX_REQUEST_BYTES} are allowed",
                code="request_too_large",
                status=413,
            )
        with self._lock:
            self._check_room(num_bytes)
            self._num_held += 1
            self._num_held_bytes += num_bytes
        try:
            yield
        finally:
            with self._lock:
                self._num_held -= 1
                self._num_held_bytes -= num_bytes

    def check_disk(self) -> None:
        """Raise SpoolUnavailable where the disk has no space for even the smallest request."""
        check_free_space(self._folder, self._fs, self.disk)

    def waiting_names(self) -> list[str]:
        """List the files of requests that wait and are not claimed. Raises SpoolUnavailable."""
        names = list(filter(is_entry_name, list_names(self._folder.incoming, self._fs)))
        if not names:
            return []
        active = set(map(id_of, filter(is_entry_name, list_names(self._folder.active, self._fs))))
        return [name for name in names if id_of(name) not in active]

    def measure(self) -> dict[str, int]:
        """Return the waiting files and their sizes in bytes, by name. Raises SpoolUnavailable."""
        with self._lock:
            return self._measure()

    def _check_room(self, num_bytes: int) -> None:
        sizes = self._measure()
        num_waiting = len(sizes) + self._num_held
        if num_waiting >= self.max_depth:
            raise SpoolFull(
                f"the queue is full: {num_waiting} requests wait (MAX_QUEUE_DEPTH={self.max_depth})"
            )
        num_waiting_bytes = sum(sizes.values()) + self._num_held_bytes
        if num_waiting_bytes + num_bytes > self.max_bytes:
            limit_mb = self.max_bytes // 2**20
            raise SpoolFull(f"the queue is full: {num_waiting_bytes} bytes wait (MAX_QUEUE_MB={limit_mb})")
        check_free_space(self._folder, self._fs, self.disk, num_bytes + self._num_held_bytes)

    def _measure(self) -> dict[str, int]:
        """Measure the new files only. The caller holds the lock."""
        known: dict[str, int] = {}
        for name in self.waiting_names():
            size = self._sizes.get(name)
            if size is None:
                with contextlib.suppress(OSError):  # claimed meanwhile
                    size = self._fs.stat(join(self._folder.incoming, name)).st_size
            if size is not None:
                known[name] = size
        self._sizes = known
        return known


def check_free_space(folder: SpoolFolder, fs: FileSystem, disk: DiskLimits, num_bytes: int = 0) -> None:
    """Check that a file of `num_bytes` leaves enough free space.

    Raises:
        SpoolUnavailable: too little space or too few files (inodes) are left, or the disk is read-only.
    """
    wanted = disk.min_free_bytes + num_bytes
    try:
        space = fs.disk_space(folder.root)
        is_close = space.num_free_bytes < wanted + disk.ballast_bytes
        if is_close and not fs.exists(folder.ballast):
            wanted += disk.ballast_bytes
    except OSError as error:
        raise SpoolUnavailable.from_os_error("ask for disk space", error) from error
    if space.is_read_only:
        raise SpoolUnavailable("the disk is mounted read-only", code="read_only")
    if space.num_free_bytes < wanted:
        free_mb, wanted_mb = space.num_free_bytes // 2**20, -(-wanted // 2**20)
        message = f"the disk is nearly full: {free_mb} MiB free, {wanted_mb} MiB needed"
        raise SpoolUnavailable(message, code="disk_full", status=507)
    if space.num_free_files is not None and space.num_free_files < _MIN_FREE_FILES:
        raise SpoolUnavailable("the disk is nearly out of files (inodes)", code="disk_full", status=507)
