"""api.py as a child process on a listening socket that outlives it, as the supervisor starts it."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from config import REPOSITORY_ROOT, Settings

API = REPOSITORY_ROOT / "api.py"


def environment(settings: Settings, **overrides: str) -> dict[str, str]:
    """Say by environment variables what the supervisor would."""
    ours = {
        "PATH": os.environ["PATH"],
        "MODEL_REPO": settings.model_repo,
        "STATE_DIR": str(settings.state_dir),
    }
    return {**ours, "SPOOL_DURABILITY": "process", "MAX_SEQUENCE_LENGTH": "1024", **overrides}


@contextmanager
def api_process(
    settings: Settings, *, under: Sequence[str] = (), **overrides: str
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Run api.py on an inherited socket; yields the process and its address."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        api_on(listening, settings, under=under, **overrides) as it,
    ):
        yield it


@contextmanager
def api_on(
    listening: socket.socket, settings: Settings, *, under: Sequence[str] = (), **overrides: str
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Run api.py on this socket, `under` another program where one is given."""
    fd = listening.fileno()
    process = subprocess.Popen(
        [*under, sys.executable, str(API), "--fd", str(fd)],
        stdin=subprocess.PIPE,
        pass_fds=[fd],
        env=environment(settings, **overrides),
    )
    try:
        yield process, f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        assert process.stdin is not None
        process.stdin.close()  # what `under` runs ends with its standard input
        process.kill()
        process.wait(10)
