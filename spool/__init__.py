"""The spool: a file queue that owns every accepted request, so that no process has to live for it to be
answered.

Front doors use `Spool` (submit, cancel, look up, follow tokens), rank 0 uses `SpoolOwner` (claim, complete,
recover). Files: folder.py (where things lie, what may be a spool), names.py, messages.py (Request, Result),
idempotency.py, token_log.py, doorbell.py (waking); for the owner lock.py, claim.py, prompt_files.py (prompt
files), results.py, quarantine.py, sweep.py (age and room); errors.py, fsio.py (every system call). It never
imports MLX and knows no HTTP.
"""

from spool.admission import DiskLimits
from spool.claim import Claim
from spool.doorbell import DOOR_PREFIX, RANK0, Doorbell, make_door_name, ring, ring_all
from spool.errors import (
    CorruptRequest,
    IdempotencyConflict,
    LogCut,
    SpoolError,
    SpoolFull,
    SpoolLocked,
    SpoolRefused,
    SpoolUnavailable,
)
from spool.fsio import FileSystem
from spool.messages import Request, Result, SamplingParams, Usage
from spool.names import MAX_SOLO_CRASHES, EntryName, is_id, make_id
from spool.owner import SpoolOwner
from spool.prompt_files import PromptFileDefaults
from spool.spool import Depth, Durability, Spool, State
from spool.sweep import Swept
from spool.token_log import LogHeader, TokenLogReader, TokenLogWriter, TokenRecord, replay

__all__ = [
    "DOOR_PREFIX",
    "MAX_SOLO_CRASHES",
    "RANK0",
    "Claim",
    "CorruptRequest",
    "Depth",
    "DiskLimits",
    "Doorbell",
    "Durability",
    "EntryName",
    "FileSystem",
    "IdempotencyConflict",
    "LogCut",
    "LogHeader",
    "PromptFileDefaults",
    "Request",
    "Result",
    "SamplingParams",
    "Spool",
    "SpoolError",
    "SpoolFull",
    "SpoolLocked",
    "SpoolOwner",
    "SpoolRefused",
    "SpoolUnavailable",
    "State",
    "Swept",
    "TokenLogReader",
    "TokenLogWriter",
    "TokenRecord",
    "Usage",
    "is_id",
    "make_door_name",
    "make_id",
    "replay",
    "ring",
    "ring_all",
]
