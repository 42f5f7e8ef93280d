"""Whether one more request may be accepted: the queue's limits and what the disk has left.

Looking costs what the queue holds (4 ms at 1000 requests), so while less than half of every limit is used, a
look counts for a moment and this process adds what it has published since. Then several front doors may pass
a limit by what they accept within that moment, and never a process alone. Knows names and sizes, nothing of
what is in the files.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

from spool.errors import SpoolFull, SpoolUnavailable
from spool.folder import SpoolFolder, list_names
from spool.fsio import FileSystem, join
from spool.names import id_of, is_entry_name

MAX_REQUEST_BYTES = 64 * 2**20  # what a claim takes for a request at all; larger is never accepted
LOOK_SECONDS = 0.5  # a look counts for so long
AMPLE_BYTES = 2**30  # free beyond what must be left: nobody fills the disk within that time
_MIN_FREE_FILES = 64
_AMPLE_FILES = 65536


@dataclass(frozen=True)
class DiskLimits:
    """What must be left on the disk for a request to be accepted, and what is set aside for results."""

    min_free_bytes: int = 64 * 2**20
    ballast_bytes: int = 2**20


class Admission:
    """Holds places in the queue; safe to use from several threads. The limits may be changed at any time."""

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
        self._look_ends = 0.0  # on the monotonic clock
        self._num_counted = 0  # waiting at the last look, and taken since
        self._num_counted_bytes = 0

    @contextlib.contextmanager
    def holding(self, num_bytes: int) -> Iterator[None]:
        """Hold a place for a file that the block publishes; other threads count it.

        A file that is published and still held counts twice at a look, so under pressure one may be refused
        too early.

        Raises:
            SpoolFull: over the count or byte limit.
            SpoolUnavailable: too large, or too little disk.
        """
        if num_bytes > MAX_REQUEST_BYTES:
            raise SpoolUnavailable(
                "the request is too large for the spool", code="request_too_large", status=413
            )
        with self._lock:
            if not self._is_far_from_full(num_bytes):
                self._look(num_bytes)
            self._num_counted += 1
            self._num_counted_bytes += num_bytes
            self._num_held += 1
            self._num_held_bytes += num_bytes
        try:
            yield
        finally:
            with self._lock:
                self._num_held -= 1
                self._num_held_bytes -= num_bytes

    def check_disk(self) -> None:
        """Raise SpoolUnavailable where nothing is accepted for want of disk, however small."""
        has_ample_disk(self._folder, self._fs, self.disk)

    def waiting_names(self) -> list[str]:
        """The files of requests that wait and that nobody works on. Raises SpoolUnavailable."""
        names = list(filter(is_entry_name, list_names(self._folder.incoming, self._fs)))
        if not names:
            return []
        active = set(map(id_of, filter(is_entry_name, list_names(self._folder.active, self._fs))))
        return [name for name in names if id_of(name) not in active]

    def measure(self) -> dict[str, int]:
        """The waiting files and their sizes in bytes, by name. Raises SpoolUnavailable."""
        with self._lock:
            return self._measure()

    def _is_far_from_full(self, num_bytes: int) -> bool:
        """Whether the last look still counts: half of each limit would be free all the same."""
        return (
            time.monotonic() < self._look_ends
            and 2 * (self._num_counted + 1) <= self.max_depth
            and 2 * (self._num_counted_bytes + num_bytes) <= self.max_bytes
        )

    def _look(self, num_bytes: int) -> None:
        self._look_ends = 0.0
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
        if has_ample_disk(self._folder, self._fs, self.disk, num_bytes + self._num_held_bytes):
            self._look_ends = time.monotonic() + LOOK_SECONDS
        self._num_counted, self._num_counted_bytes = num_waiting, num_waiting_bytes

    def _measure(self) -> dict[str, int]:
        """Only new names are asked for. The lock is held."""
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


def has_ample_disk(folder: SpoolFolder, fs: FileSystem, disk: DiskLimits, num_bytes: int = 0) -> bool:
    """Whether so much is left beside a file of `num_bytes` that a look counts for a while.

    Raises:
        SpoolUnavailable: so little is left, or the disk is such, that nothing is accepted.
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
    has_files = space.num_free_files is None or space.num_free_files > _AMPLE_FILES
    return has_files and space.num_free_bytes > wanted + AMPLE_BYTES
