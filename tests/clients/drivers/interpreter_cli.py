"""open-interpreter: runs the code of an answer, and shows the model its output."""

import os
import subprocess
import sys
from pathlib import Path

from things import RECIPE

FLAGS = "--auto_run --plain --stdin --offline --disable_telemetry --max_tokens 1000"


def task():
    folder = Path(sys.executable).parent
    ended = subprocess.run(
        ["bash", "-ec", f"{RECIPE['script']} {FLAGS}"],
        env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"},
        input="What is six times seven? Run code.\n",
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "print(6 * 7)" in ended.stdout and "The result is 42." in ended.stdout, ended.stdout + ended.stderr
