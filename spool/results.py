"""Results: writes each answer into done/ exactly once, even on a full disk.

A result is written to tmp/ and linked into done/, so no reader sees half a result and no second one can
exist. The ballast is reserved space that is released when the disk is full: half of it for the logs of
running requests, the rest for results. Knows nothing of claims.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time

from config.disk_trouble import NO_ROOM
from spool.fsio import join
from spool.messages import Request, Result
from spool.spool import Spool

_log = logging.getLogger(__name__)


class ResultWriter:
    """Writes the results of one spool. Raises the system's own errors."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._fs = spool.fs
        self._folder = spool.folder

    def publish(self, result: Result) -> bool:
        """Link a result into done/; False where one exists already, which stands."""
        try:
            return self._publish(result)
        except OSError as error:
            if error.errno not in NO_ROOM or not self._fs.unlink(self._folder.ballast):
                raise
            _log.warning("the disk is full; released the ballast to write a result")
            return self._publish(result)

    def sync(self) -> None:
        """Sync the results, before the files of their requests are removed."""
        if self._spool.is_synced:
            self._fs.sync_folder(self._folder.done)

    def give_up_half(self) -> bool:
        """Shorten the ballast to the share of results; False where it is short already, or that failed."""
        with contextlib.suppress(OSError):
            if not self._is_ballast_whole():
                return False
            fd = self._fs.open_append(self._folder.ballast)
            try:
                self._fs.truncate(fd, self._spool.admission.disk.ballast_bytes // 2)
            finally:
                self._fs.close(fd)
            _log.warning("the disk is full; released half of the ballast to write token logs")
            return True
        return False

    def restore_ballast(self) -> None:
        """Reserve the ballast again, where it is missing and the disk has space."""
        path, fresh, limits = self._folder.ballast, self._folder.tmp / "ballast", self._spool.admission.disk
        with contextlib.suppress(OSError):  # later: until then a submit needs this much more space
            space = self._fs.disk_space(self._folder.root)
            is_low = space.num_free_bytes < limits.min_free_bytes + limits.ballast_bytes
            if is_low or self._is_ballast_whole():
                return
            self._fs.unlink(fresh)
            # Random bytes take their full size, even where the file system compresses.
            self._fs.write_new(fresh, os.urandom(limits.ballast_bytes), is_synced=True)
            self._fs.rename(fresh, path)

    def _is_ballast_whole(self) -> bool:
        """Raises OSError."""
        path = self._folder.ballast
        return self._fs.exists(path) and (
            self._fs.stat(path).st_size >= self._spool.admission.disk.ballast_bytes
        )

    def _publish(self, result: Result) -> bool:
        target = self._folder.result(result.id)
        temporary = join(self._folder.tmp, f"{result.id}.result")
        try:
            self._fs.unlink(temporary)
            self._fs.write_new(temporary, result.to_json(), is_synced=self._spool.is_synced)
            is_first = self._fs.link(temporary, target)
            self.sync()
        finally:
            with contextlib.suppress(OSError):
                self._fs.unlink(temporary)
        return is_first


def make_failed(id: str, request: Request | None, code: str, message: str) -> Result:
    """Make a result with an error of the spool itself; of a damaged request only the id is known."""
    return Result.failed(
        id,
        model=request.model if request else "",
        code=code,
        message=message,
        finished_unix=time.time(),
        owner=request.owner if request else "",
        seed=request.params.seed if request else None,
    )
