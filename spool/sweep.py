"""Removes old files from the spool, by age and by size. Only rank 0 sweeps, between steps.

A result is removed when it is older than the retention, just after its token log and its request's file; its
idempotency key goes in the same sweep. Where finished requests take more space than allowed (in blocks of 4
KiB), the oldest results are removed early, but none that ended less than GRACE_SECONDS ago: its client may be
about to fetch it. On a nearly full disk, kept request files are removed early, too. Waiting and active
requests stay. Ages come from the files' times and the caller's `now`. One sweep reads each file's status
once.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from spool.errors import CorruptRequest, system_trouble
from spool.fsio import join
from spool.idempotency import Keys
from spool.names import id_of, is_entry_name, is_id, marked_id
from spool.spool import Spool

STALE_SECONDS = 3600.0  # no write takes this long
GRACE_SECONDS = 300.0  # for a client to fetch its result after a lost connection
BLOCK_BYTES = 4096
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Swept:
    """The counts of one sweep. A result counts once, with its log and request; num_files counts all files."""

    num_files: int
    num_results_by_age: int
    num_results_by_size: int
    num_kept_results: int
    num_kept_bytes: int


@dataclass(frozen=True, order=True)
class _Finished:
    """A result within the retention, and its size with log and request; sorts oldest first."""

    modified_unix: float
    id: str
    num_bytes: int


def sweep(spool: Spool, now: float, retention_seconds: float, max_bytes: int = 0) -> Swept:
    """Remove old results with their logs and keys, leftovers, and quarantined files.

    Args:
        max_bytes: the limit for finished requests; 0: no limit.
    """
    with system_trouble("sweep"):
        # A power cut must not restore the names of a request whose result is removed here.
        spool.make_sure()
    folder, rules = spool.folder, _Rules(spool, now, retention_seconds)
    num_results_by_age = _remove_each(spool, folder.done, rules.remove_result)
    early = rules.choose_early(max_bytes)
    # The key before its result: a retry in between starts a new request and keeps its new key.
    num_files = _remove_each(spool, folder.idem, rules.remove_key)
    num_results_by_size = _remove_each(spool, folder.done, rules.remove_early, early)
    num_files += (
        _remove_each(spool, folder.stream, rules.remove_log)
        + _remove_each(spool, folder.asked, rules.remove_request)
        + _remove_each(spool, folder.cancel, rules.remove_marker)
        + _remove_each(spool, folder.tmp, rules.remove_temporary)
        + _remove_each(spool, folder.bad, rules.remove_bad)
    )
    return Swept(
        num_files=num_files + num_results_by_age + num_results_by_size,
        num_results_by_age=num_results_by_age,
        num_results_by_size=num_results_by_size,
        num_kept_results=len(rules.kept),
        num_kept_bytes=sum(finished.num_bytes for finished in rules.kept.values()),
    )


class _Rules:
    """The rules of each folder; each method removes a path, or returns False where it must stay.

    `kept` holds the results that stay, by id, once done/ has been swept.
    """

    def __init__(self, spool: Spool, now: float, retention_seconds: float) -> None:
        self._fs = spool.fs
        self._folder = spool.folder
        self._keys = Keys(spool.folder, spool.fs, is_synced=spool.is_synced)
        self._now = now
        self._retention_seconds = retention_seconds
        names = [name for part in (self._folder.active, self._folder.incoming) for name in spool.names(part)]
        self._living = set(map(id_of, filter(is_entry_name, names)))
        self._is_disk_low = _is_disk_low(spool)
        self.kept: dict[str, _Finished] = {}
        self._early: set[str] = set()
        self._early_until_unix = -math.inf

    def remove_result(self, path: Path) -> bool:
        id = path.name.removesuffix(".json")
        if id in self._living:
            return False
        info = self._fs.stat(path)
        if self._now - info.st_mtime <= self._retention_seconds:
            if is_id(id):
                num_bytes = _blocks(info.st_size) + self._room_beside(id)
                self.kept[id] = _Finished(info.st_mtime, id, num_bytes)
            return False
        return self._remove_answered(id, path)

    def choose_early(self, max_bytes: int) -> list[str]:
        """Choose the oldest results to remove until the others fit; return the names of their files."""
        num_excess = sum(finished.num_bytes for finished in self.kept.values()) - max_bytes
        if max_bytes == 0 or num_excess <= 0:
            return []
        for finished in sorted(self.kept.values()):
            if num_excess <= 0 or self._now - finished.modified_unix <= GRACE_SECONDS:
                break
            num_excess -= finished.num_bytes
            self._early.add(finished.id)
            self._early_until_unix = finished.modified_unix
        return [f"{id}.json" for id in self._early]

    def remove_early(self, path: Path) -> bool:
        id = path.name.removesuffix(".json")
        is_removed = self._remove_answered(id, path)
        del self.kept[id]
        return is_removed

    def _remove_answered(self, id: str, path: Path) -> bool:
        """Remove the result last: after a crash its result leads to the other files."""
        if is_id(id):
            self._fs.unlink(self._folder.stream / id)
            self._fs.unlink(self._folder.request(id))
        return self._fs.unlink(path)

    def remove_log(self, path: Path) -> bool:
        if path.name in self.kept:
            return False
        is_old = self._is_old(path, self._retention_seconds)
        return is_old and not self._has_owner(path.name) and self._fs.unlink(path)

    def remove_request(self, path: Path) -> bool:
        """Remove an answered request's file: without its result, or on a nearly full disk."""
        id = path.name.removesuffix(".json")
        if id in self._living or (id in self.kept and not self._is_disk_low):
            return False
        is_old = self._is_old(path, self._retention_seconds) and not self._has_owner(id)
        return (is_old or self._is_disk_low) and self._fs.unlink(path)

    def remove_key(self, path: Path) -> bool:
        """Remove the key of a removed result. A key is older than its result, so young ones are not read."""
        modified_unix = self._fs.stat(path).st_mtime
        is_old = self._now - modified_unix > self._retention_seconds
        if not is_old and modified_unix > self._early_until_unix:
            return False
        try:
            record = self._keys.find(path)
        except CorruptRequest:
            record = None
        if record is not None and record.id in self._early:
            return self._fs.unlink(path)
        return is_old and not (record and self._has_owner(record.id)) and self._fs.unlink(path)

    def remove_marker(self, path: Path) -> bool:
        is_stale = marked_id(path.name) not in self._living and self._is_old(path, STALE_SECONDS)
        return is_stale and self._fs.unlink(path)

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

    def _room_beside(self, id: str) -> int:
        """Measure an answered request's log and file; a file that is about to be removed does not count."""
        paths = [join(self._folder.stream, id)]
        if not self._is_disk_low:
            paths.append(self._folder.request(id))
        num_bytes = 0
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                num_bytes += _blocks(self._fs.stat(path).st_size)
        return num_bytes


def _blocks(num_bytes: int) -> int:
    return -(-num_bytes // BLOCK_BYTES) * BLOCK_BYTES


def _is_disk_low(spool: Spool) -> bool:
    """Whether the disk has too little space to accept requests."""
    limits = spool.admission.disk
    with contextlib.suppress(OSError):
        space = spool.fs.disk_space(spool.folder.root)
        return space.num_free_bytes < limits.min_free_bytes + limits.ballast_bytes
    return False


def _remove_each(
    spool: Spool, folder: Path, remove: Callable[[Path], bool], names: Iterable[str] | None = None
) -> int:
    """Call `remove` for each name in a folder, or for these names; retry failures at the next sweep.

    Log the first failure and the number of failures: on a read-only disk every removal fails.
    """
    num_removed, refused = 0, []
    for name in spool.names(folder) if names is None else names:
        try:
            num_removed += remove(folder / name)
        except FileNotFoundError:
            continue
        except OSError as error:
            refused.append((name, error))
    if refused:
        others = f", nor {len(refused) - 1} others" if len(refused) > 1 else ""
        _log.warning("cannot sweep %a in %s/: %s%s", refused[0][0], folder.name, refused[0][1], others)
    return num_removed
