"""Runs calls of libraries that a client's text can break: on a deep stack, and with panics as errors.

An overflow of the stack ends the process, and with it the requests of all other clients. A panic of a library
in Rust is a BaseException in Python, which `except Exception` does not catch.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

STACK_BYTES = 512 * 2**20  # takes memory only where it is used, until the call ends
Answer = TypeVar("Answer")

_starting = threading.Lock()  # the stack's size is the process's


class LibraryPanic(Exception):
    """A library in Rust panicked; the message is the library's."""


@contextmanager
def panics_as_errors() -> Iterator[None]:
    """Raise LibraryPanic where a library in Rust panics (pyo3 exports no class of its exception)."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise LibraryPanic(str(error)) from None


def run_deep(call: Callable[[], Answer]) -> Answer:
    """Return what the call returns, or raise what it raises, panics as LibraryPanic.

    Without memory for the stack, run it here.
    """
    with panics_as_errors():
        return _run_deep(call)


def _run_deep(call: Callable[[], Answer]) -> Answer:
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
