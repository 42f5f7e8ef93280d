"""Asks a running service's rank 0 to record its steps, by a file in its run folder, and waits for the record.

Knows the two files' names (distributed/step_trace.py says what is in them) and nothing of what a record is
used for.
"""

from __future__ import annotations

import time
import uuid
from typing import Any

from bench.contender import BenchError
from config import Settings
from config.run_files import read_json, write_json

REQUEST_NAME, RECORD_NAME = "trace-request.json", "trace.json"
# Rank 0 looks for a request once a second, and at the end of the record once more.
GRACE_S = 8.0
LOOK_INTERVAL_S = 0.1


def fetch_record(settings: Settings, seconds: float) -> dict[str, Any]:
    """Ask rank 0 for a record and wait until it is written.

    Raises:
        BenchError: none came.
    """
    ask_for_record(settings, seconds, wanted := uuid.uuid4().hex)
    record = wait_for_record(settings, wanted, seconds + GRACE_S)
    if record is None:
        raise BenchError(
            f"rank 0 wrote no {RECORD_NAME} within {seconds + GRACE_S:g} s: see ./launch.sh status; "
            "a ring that was restarted meanwhile has forgotten the request"
        )
    return record


def ask_for_record(settings: Settings, seconds: float, wanted: str) -> None:
    """Put the request where rank 0 looks."""
    write_json(settings.run_dir / REQUEST_NAME, {"id": wanted, "seconds": seconds})


def wait_until_taken(settings: Settings, limit_s: float) -> bool:
    """Wait until rank 0 has seen the request; False where it does not."""
    deadline = time.monotonic() + limit_s
    while (settings.run_dir / REQUEST_NAME).exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(LOOK_INTERVAL_S)  # nothing tells when a file is taken
    return True


def wait_for_record(settings: Settings, wanted: str, limit_s: float) -> dict[str, Any] | None:
    """The record of that id, or None where there is none in time."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        record = read_json(settings.run_dir / RECORD_NAME)
        if record is not None and record.get("id") == wanted:
            return record
        time.sleep(LOOK_INTERVAL_S)  # rank 0 tells nobody that it has written a file
    return None
