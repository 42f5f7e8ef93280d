"""Checks the whole input of a batch before its first line runs.

A batch with a wrong line fails as a whole, with the first MAX_ERRORS errors. Knows files and settings; what a
line must have is in spool/batches/lines.py.
"""

import time

from frontdoor.batches.endpoints import ENDPOINTS
from frontdoor.http.errors import ModelNotFound
from frontdoor.served_model import check_model
from frontdoor.state import FrontDoor
from spool.batches import Batch, BatchState, LineChecker, LineError, scan_lines

MAX_ERRORS = 100


def validate(front: FrontDoor, batch: Batch) -> BatchState:
    """Return the state after validation: in progress, or failed. Raises SpoolUnavailable."""
    settings, store = front.settings, front.batches
    checker = LineChecker(batch.endpoint, settings.max_body_bytes, lambda name: _is_served(front, name))
    errors: list[LineError] = []
    if batch.endpoint not in ENDPOINTS:  # of a batch that no route has begun
        errors.append(LineError("invalid_endpoint", f"the endpoint must be one of {', '.join(ENDPOINTS)}"))
    num_lines = 0
    for raw in scan_lines(store.spool.fs, store.input(batch.id), settings.max_body_bytes):
        num_lines += 1
        if num_lines > settings.max_batch_lines:
            message = f"the file has more than MAX_BATCH_LINES={settings.max_batch_lines} lines"
            errors.append(LineError("too_many_lines", message))
        elif (error := checker.check(raw)) is not None:
            errors.append(error)
        if len(errors) >= MAX_ERRORS or num_lines > settings.max_batch_lines:
            break
    if not num_lines:
        errors.append(LineError("empty_file", "the file has no lines"))
    now = time.time()
    if errors:
        return BatchState("failed", errors=tuple(errors), ended_unix=now)
    return BatchState("in_progress", num_total=num_lines, in_progress_unix=now)


def _is_served(front: FrontDoor, name: str | None) -> bool:
    try:
        check_model(front, name)
    except ModelNotFound:
        return False
    return True
