"""Ctrl-C in a command that must finish or undo what it has started.

Knows nothing of what the command does.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Self

from cluster.errors import Interrupted

LOOK_INTERVAL_S = 0.1


class InterruptFlag:
    """While it is entered, the first SIGINT sets `is_set`; a second one raises KeyboardInterrupt as usual."""

    def __init__(self) -> None:
        self.is_set = False

    def __enter__(self) -> Self:
        # SIGINT may be ignored on purpose (nohup, a script's &).
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        if signal.getsignal(signal.SIGINT) == self._on_signal:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.is_set = True
        signal.signal(signal.SIGINT, signal.default_int_handler)


def run_to_end(command: Sequence[str], *, folder: Path, environment: Mapping[str, str]) -> int:
    """Run a program without its standard output; its exit code.

    It runs in a session of its own, so that Ctrl-C reaches only us and we end it without its traceback.

    Raises:
        Interrupted: Ctrl-C; the program was killed.
    """
    with (
        InterruptFlag() as interrupt,
        subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, start_new_session=True
        ) as child,
    ):
        while not interrupt.is_set:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return child.wait(LOOK_INTERVAL_S)
        child.kill()
    raise Interrupted("Interrupted: nothing was started; the same command continues here")
