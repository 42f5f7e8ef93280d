"""Checks for `status`, `start` and `doctor` whether the service can write to the disk of STATE_DIR.

Applies the spool's own condition for accepting a request, and writes a small file to the folders of status
files and logs. Knows nothing of the files' contents.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from cluster.errors import ClusterError
from config import Settings
from config.disk_trouble import describe_refused
from spool import SpoolUnavailable
from spool.admission import DiskLimits, check_free_space
from spool.folder import SpoolFolder
from spool.fsio import FileSystem

PROBE_BYTES = 16 * 1024


def find_disk_trouble(state_dir: Path) -> str | None:
    """Why the disk keeps the spool from accepting requests; None if it does not, or without a STATE_DIR."""
    root = state_dir / "spool" if (state_dir / "spool").is_dir() else state_dir
    if not root.is_dir():
        return None
    try:
        check_free_space(SpoolFolder(root), FileSystem(), DiskLimits())
    except SpoolUnavailable as error:
        return f"no request is accepted: {error} (STATE_DIR {state_dir})"
    return None


def check_disk(settings: Settings) -> None:
    """Refuse a start that could write neither its status files nor its logs.

    Raises:
        ClusterError: naming the folder, the system's error and the fix.
    """
    for folder in (settings.run_dir, settings.log_dir):
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with tempfile.NamedTemporaryFile(dir=folder, prefix=".probe-") as file:
                file.write(os.urandom(PROBE_BYTES))
                file.flush()
        except OSError as error:
            raise ClusterError(f"STATE_DIR cannot be used: {describe_refused(error, folder)}") from error
    if trouble := find_disk_trouble(settings.state_dir):
        raise ClusterError(f"{trouble}: make room there, or choose another folder with STATE_DIR in .env")
