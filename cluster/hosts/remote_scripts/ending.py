"""Kills processes on this machine by pid and start time. remote_ranks.py sends it to hosts, whose environment
runs it.
"""

from __future__ import annotations

import json
import time
from typing import Any

import psutil

WAIT_S = 5.0
LOOK_S = 0.02
NUM_TRIES = 3
# On macOS psutil fails at random, most of all for processes of others.
PSUTIL_ERRORS = (psutil.Error, RuntimeError, SystemError, OSError)


def main(question: dict[str, Any]) -> None:
    """Print {"num_killed", "left": [pid, …]}; a process that has ended is no error.

    Args:
        question: {"processes": [[pid, start time], …], "tolerance_s"}.
    """
    pids = [pid for pid, start_time in question["processes"] if end(pid, start_time, question["tolerance_s"])]
    deadline = time.monotonic() + WAIT_S
    while (left := [pid for pid in pids if is_running(pid)]) and time.monotonic() < deadline:
        time.sleep(LOOK_S)
    print(json.dumps({"num_killed": len(pids), "left": left}))


def end(pid: int, start_time: float, tolerance_s: float) -> bool:
    """Kill a process if its start time matches; retry where psutil fails."""
    for _ in range(NUM_TRIES):
        try:
            process = psutil.Process(pid)
            if abs(process.create_time() - start_time) > tolerance_s:
                return False
            process.kill()
        except psutil.NoSuchProcess:
            return False
        except PSUTIL_ERRORS:
            continue
        return True
    return False


def is_running(pid: int) -> bool:
    """True while a process has not ended, and where psutil cannot say."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
    except PSUTIL_ERRORS:
        return bool(psutil.pid_exists(pid))
