"""Asks a running service's rank 0 to record its steps, by a file in its run folder, and waits for the record.

Knows the two files' names (distributed/engine/step_trace.py has their form), and nothing of the use of a
record.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any, TypeVar

from bench.setup import BenchError
from config import Settings
from config.run_files import read_json, write_json

REQUEST_NAME, RECORD_NAME = "trace-request.json", "trace.json"
# Rank 0 looks for a request once a second, and at the end of the record once more.
GRACE_S = 8.0
LOOK_INTERVAL_S = 0.1

T = TypeVar("T")


def start_record(settings: Settings, seconds: float) -> str:
    """Let rank 0 begin a record of at most `seconds` seconds; return its id.

    Raises:
        BenchError: rank 0 does not take the request.
    """
    wanted = uuid.uuid4().hex
    request = settings.run_dir / REQUEST_NAME
    write_json(request, {"id": wanted, "seconds": seconds})
    if not _poll(lambda: not request.exists(), GRACE_S):
        raise BenchError("rank 0 does not take the request to record its steps: see ./launch.sh status")
    return wanted


def end_record(settings: Settings) -> None:
    """Let rank 0 end its record now."""
    write_json(settings.run_dir / REQUEST_NAME, {"id": "", "seconds": 0})


def fetch_record(settings: Settings, wanted: str, limit_s: float = GRACE_S) -> dict[str, Any]:
    """Wait for a record.

    Raises:
        BenchError: none came.
    """
    path = settings.run_dir / RECORD_NAME

    def read() -> dict[str, Any] | None:
        record = read_json(path)
        return record if record and record.get("id") == wanted else None

    if record := _poll(read, limit_s):
        return record
    raise BenchError(
        f"rank 0 wrote no {RECORD_NAME} within {limit_s:g} s: see ./launch.sh status; "
        "a ring that restarted meanwhile has lost the request"
    )


def _poll(look: Callable[[], T], limit_s: float) -> T:
    """Look until something is there: rank 0 sends no message about a file that it took or wrote."""
    deadline = time.monotonic() + limit_s
    while not (found := look()) and time.monotonic() < deadline:
        time.sleep(LOOK_INTERVAL_S)
    return found
