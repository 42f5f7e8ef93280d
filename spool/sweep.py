"""Housekeeping: what may go from the spool, by age. Only rank 0 sweeps, between steps.

A result and its token log go when the result is older than the retention, the log first. What still waits
or is worked on is never touched, nor is anything young. Ages are by the files' own times, against the `now`
that the caller believes in.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from spool.names import EntryName, is_id
from spool.spool import Spool

STALE_SECONDS = 3600.0  # nothing is being written for that long
_log = logging.getLogger(__name__)


def sweep(spool: Spool, now: float, retention_seconds: float) -> int:
    """Remove old results with their logs, stale temporary files, markers of no request, old quarantine."""
    folder = spool.folder
    entries = [
        EntryName.parse(name) for part in (folder.active, folder.incoming) for name in spool.names(part)
    ]
    living = {entry.id for entry in entries if entry is not None}

    def is_old(path: Path, seconds: float) -> bool:
        return now - spool.fs.stat(path).st_mtime > seconds

    def remove_result(path: Path) -> bool:
        id = path.name.removesuffix(".json")
        if id in living or not is_old(path, retention_seconds):
            return False
        if is_id(id):
            spool.fs.unlink(folder.stream / id)
        return spool.fs.unlink(path)

    def remove_log(path: Path) -> bool:
        has_owner = path.name in living or spool.fs.exists(folder.result(path.name))
        return not has_owner and is_old(path, retention_seconds) and spool.fs.unlink(path)

    def remove_marker(path: Path) -> bool:
        return path.name not in living and is_old(path, STALE_SECONDS) and spool.fs.unlink(path)

    def remove_temporary(path: Path) -> bool:
        return is_old(path, STALE_SECONDS) and spool.fs.unlink(path)

    def remove_bad(path: Path) -> bool:
        if not is_old(path, retention_seconds):
            return False
        spool.fs.remove_tree(path)
        return True

    return (
        _remove_each(spool, folder.done, remove_result)
        + _remove_each(spool, folder.stream, remove_log)
        + _remove_each(spool, folder.cancel, remove_marker)
        + _remove_each(spool, folder.tmp, remove_temporary)
        + _remove_each(spool, folder.bad, remove_bad)
    )


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
