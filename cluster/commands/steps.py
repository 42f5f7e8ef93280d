"""The numbered steps of a start at a terminal: each with its result and duration.

Knows nothing of what the steps do.
"""

from __future__ import annotations

import time

from cluster.terminal import Terminal, format_duration


class Steps:
    """Numbers steps; between two of them, shows the progress on each host."""

    def __init__(self, terminal: Terminal, num_steps: int) -> None:
        self._terminal = terminal
        self._num_steps = num_steps
        self._number = 0
        self._since = time.monotonic()
        self._progress: dict[str, str] = {}

    def done(self, name: str, detail: str) -> None:
        """Print a finished step."""
        self._number += 1
        now = time.monotonic()
        label = self._terminal.colored(f"{self._number}/{self._num_steps}", "dim")
        self._terminal.line(f"{label} {name:<10} {detail}  ({format_duration(now - self._since)})")
        self._since = now
        self._progress.clear()

    def say(self, host: str, text: str) -> None:
        """Show progress on a host: all hosts in one line on a terminal, a line each time elsewhere."""
        if self._progress.get(host) == text:
            return
        self._progress[host] = text
        if self._terminal.is_live:
            self._terminal.live(
                "    " + "   ".join(f"{name}: {what}" for name, what in self._progress.items())
            )
        else:
            self._terminal.line(f"    {host}: {text}")
