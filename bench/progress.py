"""Progress lines with the time since the start, on standard error, so that results alone are on standard
output.

Knows nothing of what it tells.
"""

from __future__ import annotations

import sys
import time

from cluster.terminal import Terminal


class Progress:
    """Prints a line for each step."""

    def __init__(self, terminal: Terminal | None = None) -> None:
        self._terminal = terminal or Terminal(sys.stderr)
        self._start_s = time.monotonic()

    def line(self, text: str) -> None:
        """Print what is done now."""
        self._terminal.line(f"[{time.monotonic() - self._start_s:4.0f} s] {text}")
