"""The real supervisor over the fake rank and the fake front door, with short limits."""

import os
import sys
from pathlib import Path

from cluster.supervisor import front_door
from cluster.supervisor.running import ROOT, Programs
from cluster.supervisor.supervisor import parse_flags, run_supervisor

PROGRAMS = Programs(
    rank=(sys.executable, "-m", "tests.fakes.fake_rank"),
    api=(sys.executable, "-m", "tests.fakes.fake_api"),
    folder=ROOT,
    heartbeat_limit_s=float(os.environ.get("FAKE_HEARTBEAT_LIMIT_S", "10")),
    restart_delay_s=0.02,
    api_silence_limit_s=float(os.environ.get("FAKE_API_LIMIT_S", "15")),
)

if __name__ == "__main__":
    front_door.API_END_LIMIT_S = 1.0
    root = os.environ.get("FAKE_ROOT")
    sys.exit(run_supervisor(parse_flags(sys.argv[1:]), PROGRAMS, root=Path(root) if root else None))
