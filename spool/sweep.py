"""Housekeeping: what may go from the spool, by age. Only rank 0 sweeps, between steps.

A result goes when it is older than the retention; its token log and its request's file go just before it, and
with them the idempotency key they had. What still waits or is worked on is never touched, nor is anything
young, but for requests kept after their end: they go early where the disk is nearly full. Ages are by the
files' own times, against the `now` that the caller believes in.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from pathlib import Path

from spool.errors import CorruptRequest, system_trouble
from spool.idempotency import Keys
from spool.names import id_of, is_entry_name, is_id
from spool.spool import Spool

STALE_SECONDS = 3600.0  # nothing is being written for that long
_log = logging.getLogger(__name__)


def sweep(spool: Spool, now: float, retention_seconds: float) -> int:
    """Remove what is old: results with their logs and keys, leftovers, quarantine; how many."""
    with system_trouble("sweep"):
        # A request whose end was swept must not come back when a power cut undoes the removal of its names.
        spool.make_sure()
    folder, broom = spool.folder, _Broom(spool, now, retention_seconds)
    return (
        _remove_each(spool, folder.done, broom.remove_result)
        + _remove_each(spool, folder.stream, broom.remove_log)
        + _remove_each(spool, folder.asked, broom.remove_request)
        + _remove_each(spool, folder.idem, broom.remove_key)
        + _remove_each(spool, folder.cancel, broom.remove_marker)
        + _remove_each(spool, folder.tmp, broom.remove_temporary)
        + _remove_each(spool, folder.bad, broom.remove_bad)
    )


class _Broom:
    """What may go of each folder; each method removes a path, or returns False where it has to stay."""

    def __init__(self, spool: Spool, now: float, retention_seconds: float) -> None:
        self._fs = spool.fs
        self._folder = spool.folder
        self._keys = Keys(spool.folder, spool.fs, is_synced=spool.is_synced)
        self._now = now
        self._retention_seconds = retention_seconds
        names = [name for part in (self._folder.active, self._folder.incoming) for name in spool.names(part)]
        self._living = set(map(id_of, filter(is_entry_name, names)))
        self._is_disk_low = _is_disk_low(spool)

    def remove_result(self, path: Path) -> bool:
        id = path.name.removesuffix(".json")
        if id in self._living or not self._is_old(path, self._retention_seconds):
            return False
        if is_id(id):
            self._fs.unlink(self._folder.stream / id)
            self._fs.unlink(self._folder.request(id))
        return self._fs.unlink(path)

    def remove_log(self, path: Path) -> bool:
        is_old = self._is_old(path, self._retention_seconds)
        return is_old and not self._has_owner(path.name) and self._fs.unlink(path)

    def remove_request(self, path: Path) -> bool:
        """Of an answered one: without its result it is of no use, and on a full disk of the least."""
        id = path.name.removesuffix(".json")
        if id in self._living:
            return False
        is_old = self._is_old(path, self._retention_seconds) and not self._has_owner(id)
        return (is_old or self._is_disk_low) and self._fs.unlink(path)

    def remove_key(self, path: Path) -> bool:
        if not self._is_old(path, self._retention_seconds):
            return False
        try:
            record = self._keys.find(path)
        except CorruptRequest:
            record = None
        return not (record and self._has_owner(record.id)) and self._fs.unlink(path)

    def remove_marker(self, path: Path) -> bool:
        return path.name not in self._living and self.remove_temporary(path)

    def remove_temporary(self, path: Path) -> bool:
        return self._is_old(path, STALE_SECONDS) and self._fs.unlink(path)

    def remove_bad(self, path: Path) -> bool:
        if not self._is_old(path, self._retention_seconds):
            return False
        self._fs.remove_tree(path)
        return True

    def _is_old(self, path: Path, seconds: float) -> bool:
        return self._now - self._fs.stat(path).st_mtime > seconds

    def _has_owner(self, id: str) -> bool:
        return id in self._living or self._fs.exists(self._folder.result(id))


def _is_disk_low(spool: Spool) -> bool:
    """Whether so little is left that nothing is accepted any more."""
    limits = spool.disk
    with contextlib.suppress(OSError):
        space = spool.fs.disk_space(spool.folder.root)
        return space.num_free_bytes < limits.min_free_bytes + limits.ballast_bytes
    return False


def _remove_each(spool: Spool, folder: Path, remove: Callable[[Path], bool]) -> int:
    """Offer everything in a folder; what cannot be removed now is offered again next time."""
    num_removed = 0
    for name in spool.names(folder):
        try:
            num_removed += remove(folder / name)
        except FileNotFoundError:
            continue
        except OSError as error:
            _log.warning("cannot sweep %a in %s/: %s", name, folder.name, error)
    return num_removed
