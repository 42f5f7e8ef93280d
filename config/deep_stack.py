"""Runs a call on a deep stack, in a thread of its own.

For libraries that recurse over a client's text: an overflow of the stack ends the process, and with it the
requests of all other clients.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

STACK_BYTES = 512 * 2**20  # takes memory only where it is used, until the call ends
Answer = TypeVar("Answer")

_starting = threading.Lock()  # the stack's size is the process's


def run_deep(call: Callable[[], Answer]) -> Answer:
    """Return what the call returns, or raise what it raises; without memory for the stack, run it here."""
    executor = ThreadPoolExecutor(1, thread_name_prefix="deep-stack")
    with _starting:
        size_before = threading.stack_size(STACK_BYTES)
        try:
            found = executor.submit(call)
        except RuntimeError:
            return call()
        finally:
            threading.stack_size(size_before)
    executor.shutdown(wait=False)
    return found.result()
