"""Progress lines with the time since the start, and how many of how many steps are done where that is known,
on standard error, so that results alone are on standard output.

Knows nothing of what it tells.
"""

from __future__ import annotations

import sys
import time

from cluster.terminal import Terminal


class Progress:
    """Prints a line for each step; `num_steps` of 0 means that nobody knows how many there are."""

    def __init__(self, terminal: Terminal | None = None) -> None:
        self._terminal = terminal or Terminal(sys.stderr)
        self._start_s = time.monotonic()
        self._num_done = self._num_steps = 0

    def expect(self, num_steps: int) -> None:
        """Let every line tell how many of so many steps are done."""
        self._num_steps = num_steps

    def line(self, text: str) -> None:
        """Print what is done now."""
        counted = f", {self._num_done} of {self._num_steps}" if self._num_steps else ""
        self._terminal.line(f"[{time.monotonic() - self._start_s:4.0f} s{counted}] {text}")

    def done(self, text: str) -> None:
        """Print that one more step is done."""
        self._num_done += 1
        self.line(text)
