"""litellm's proxy between the openai client and the service."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from things import RECIPE

with socket.create_server(("127.0.0.1", 0)) as free:
    PORT = str(free.getsockname()[1])
config = Path(os.environ["HOME"]) / "litellm.yaml"
config.write_text(RECIPE["files"]["~/litellm.yaml"])
proxy = subprocess.Popen(
    [Path(sys.executable).with_name("litellm"), "--config", config, *("--host", "127.0.0.1"), "--port", PORT],
    env={**os.environ, "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true"},
    stdout=subprocess.DEVNULL,
)
for _ in range(600):
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{PORT}/health/liveliness", timeout=5)
        break
    except OSError:
        time.sleep(0.1)
os.environ["OPENAI_BASE_URL"] = f"http://127.0.0.1:{PORT}/v1"
import openai_py  # noqa: E402 - it reads the address


def chat():
    openai_py.chat()


def stream():
    openai_py.stream()


def tools():
    openai_py.tools()


def parse():
    openai_py.parse()


def logprobs():
    openai_py.logprobs()


def stop_proxy():
    """Leave no process."""
    proxy.terminate()
    assert proxy.wait(timeout=30) is not None
