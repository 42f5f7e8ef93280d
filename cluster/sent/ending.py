"""Kill processes of this machine by pid and start time. Sent to hosts by cluster/remote_ranks.py, and run by
the environment there.
"""

from __future__ import annotations

import json
from typing import Any

import psutil

WAIT_S = 5.0


def main(question: dict[str, Any]) -> None:
    """Print {"num_killed", "left": [pid, …]}; what has gone already, or is another process now, is no error.

    Args:
        question: {"processes": [[pid, start time], …], "tolerance_s"}.
    """
    found = []
    for pid, start_time in question["processes"]:
        try:
            process = psutil.Process(pid)
            if abs(process.create_time() - start_time) <= question["tolerance_s"]:
                process.kill()
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    _, left = psutil.wait_procs(found, timeout=WAIT_S)
    print(json.dumps({"num_killed": len(found), "left": [process.pid for process in left]}))
