"""Files of clients and batches of requests: what OpenAI's /v1/files and /v1/batches keep on the disk.

Others use `BatchStore` (create, find, list, cancel, the lock of the one runner) and its `files`
(`FileStore`), `Journal` (which lines of a batch have ended), `scan_lines` and `LineChecker` (the lines of an
input). The folders are the truth: any front door may read and create; only the holder of the lock writes
states and journals. Knows no HTTP, and nothing of what a line's body asks for.
"""

from spool.batches.files import FileStore, StoredFile, Upload, make_record
from spool.batches.journal import Ended, Journal, follow_journal
from spool.batches.lines import BatchLine, LineChecker, LineError, RawLine, scan_lines
from spool.batches.store import (
    Batch,
    BatchState,
    BatchStore,
    BatchView,
    line_request_id,
    make_batch_id,
)

__all__ = [
    "Batch",
    "BatchLine",
    "BatchState",
    "BatchStore",
    "BatchView",
    "Ended",
    "FileStore",
    "Journal",
    "LineChecker",
    "LineError",
    "RawLine",
    "StoredFile",
    "Upload",
    "follow_journal",
    "line_request_id",
    "make_batch_id",
    "make_record",
    "scan_lines",
]
