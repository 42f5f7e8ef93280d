"""Waiting for what has no event."""

import threading
import time
from collections.abc import Callable

LOOK_INTERVAL_S = 0.02


def until(holds: Callable[[], object], limit_s: float = 30.0, what: str = "it never came to be") -> None:
    """Look until it is so."""
    deadline, pause = time.monotonic() + limit_s, threading.Event()
    while not holds():
        assert time.monotonic() < deadline, what
        pause.wait(LOOK_INTERVAL_S)
