"""Reads and writes the small records of files and batches: sealed JSON, replaced as a whole.

The form is that of spool/messages.py, with a checksum. Knows no kind of record.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TypeVar

import msgspec

from spool.errors import CorruptRequest, SpoolUnavailable
from spool.fsio import FileSystem, NotPlainFile
from spool.messages import seal, unseal
from spool.spool import Spool

MAX_RECORD_BYTES = 1 << 20
Record = TypeVar("Record", bound=msgspec.Struct)


def read_record(fs: FileSystem, path: Path, kind: type[Record]) -> Record | None:
    """Return a record; None where the file is missing. Raises CorruptRequest, SpoolUnavailable."""
    try:
        data = fs.read(path, MAX_RECORD_BYTES)
    except FileNotFoundError:
        return None
    except NotPlainFile as error:
        raise CorruptRequest(f"{path.name} is {error}") from error
    except OSError as error:
        raise SpoolUnavailable.from_os_error(f"read {path.name}", error) from error
    try:
        return msgspec.convert(unseal(kind.__name__, data), kind)
    except msgspec.ValidationError as error:
        raise CorruptRequest(f"{path.name} has a wrong field: {error}") from None


def write_record(spool: Spool, path: Path, record: msgspec.Struct, *, is_synced: bool) -> None:
    """Replace a record. Raises OSError.

    Args:
        is_synced: whether it must be on the disk, with all that was written to its folder before; without,
            a power cut may damage it.
    """
    temporary = Path(spool.folder.temporary())
    try:
        data = seal(type(record).__name__, msgspec.to_builtins(record))
        spool.fs.write_new(temporary, data, is_synced=is_synced)
        if is_synced:
            spool.fs.order_folder(temporary.parent)  # no power cut may leave the new name without its data
        spool.fs.rename(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            spool.fs.unlink(temporary)
        raise
    if is_synced:
        spool.fs.sync_folder(path.parent)
