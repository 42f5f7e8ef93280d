"""The spool: a file queue that holds every accepted request, so that any process may die.

Front doors use `Spool` (submit, cancel, look up, follow tokens) and `OpenRequests` (counts by owner). Rank 0
uses `SpoolOwner` (claim, complete, recover). Both use folder.py (layout), names.py, messages.py (Request,
Result), idempotency.py, token_log.py and doorbell.py. The owner adds lock.py, claim.py, prompt_files.py,
results.py, quarantine.py and sweep.py.
fsio.py makes every system call. The spool never imports MLX and knows no HTTP.
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
from spool.messages import Request, Result, SamplingParams, TokenLogprob, Usage
from spool.names import MAX_SOLO_CRASHES, EntryName, is_id, make_id
from spool.open_requests import OpenRequests
from spool.owner import SpoolOwner
from spool.prompt_files import PromptFileDefaults
from spool.spool import Depth, Durability, Spool, State
from spool.sweep import Swept
from spool.token_log import LogHeader, TokenLogReader, TokenLogWriter, TokenRecord

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
    "OpenRequests",
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
    "TokenLogprob",
    "TokenRecord",
    "Usage",
    "is_id",
    "make_door_name",
    "make_id",
    "ring",
    "ring_all",
]
