"""Reads and writes the small JSON status files in STATE_DIR/run.

A write replaces the whole file, so a reader never sees half of it. A status file has blanks behind its text:
on a full disk, which has no room for a second file, it is overwritten in place. Knows nothing of the files'
content.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from config.disk_trouble import NO_ROOM

BLOCK_BYTES = 4096
# A status file may grow by this much and still be overwritten in place.
SPARE_BYTES = 2048
# A reader may see half of a file that is overwritten in place; the next read sees all of it.
NUM_READS = 3


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the object in a file; None where the file is missing, unreadable or holds no object."""
    for _ in range(NUM_READS):
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            continue
        except OSError:
            return None
        return data if isinstance(data, dict) else None
    return None


def mapping(value: object) -> Mapping[str, Any]:
    """Return an object from a status file; empty where the file has something else."""
    return value if isinstance(value, Mapping) else {}


def number(value: object) -> float:
    """Return a number from a status file; 0 where the file has something else."""
    return float(value) if isinstance(value, int | float) else 0.0


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Replace a file, readable by its owner only; make its folder where it is missing.

    Raises:
        OSError: the disk refused; the old file is unchanged, and the new one is removed.
    """
    _replace(path, _encode(data))


def write_status(path: Path, data: Mapping[str, Any]) -> None:
    """Replace a file as `write_json` does; on a full disk, overwrite the old one.

    Raises:
        OSError: neither was possible. The caller guards the write (config/disk_trouble.py).
    """
    text = _encode(data)
    num_bytes = -(-(len(text) + SPARE_BYTES) // BLOCK_BYTES) * BLOCK_BYTES
    try:
        _replace(path, text.ljust(num_bytes))
    except OSError as error:
        if error.errno not in NO_ROOM or not overwrite(path, text):
            raise


def overwrite(path: Path, text: bytes) -> bool:
    """Overwrite a file in place, and pad it with blanks; False where it would have to grow."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        num_bytes = os.fstat(descriptor).st_size
        return len(text) <= num_bytes == os.pwrite(descriptor, text.ljust(num_bytes), 0)
    finally:
        os.close(descriptor)


def _encode(data: Mapping[str, Any]) -> bytes:
    return json.dumps(data, ensure_ascii=False, allow_nan=False).encode("utf-8")


def _replace(path: Path, text: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(text)
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise
