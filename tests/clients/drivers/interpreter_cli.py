"""open-interpreter: runs the code of an answer, and shows the model its output."""

import subprocess
import sys
from pathlib import Path

from things import MODEL, URL

FLAGS = "--auto_run --plain --stdin --offline --disable_telemetry --context_window 32000 --max_tokens 1000"


def task():
    program = Path(sys.executable).with_name("interpreter")
    service = ["--model", f"openai/{MODEL}", "--api_base", URL, "--api_key", "any"]
    ended = subprocess.run(
        [program, *service, *FLAGS.split()],
        input="What is six times seven? Run code.\n",
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "print(6 * 7)" in ended.stdout and "The result is 42." in ended.stdout, ended.stdout + ended.stderr
