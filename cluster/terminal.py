"""Prints for the commands: a line that updates itself on a terminal, plain lines elsewhere. Honours NO_COLOR.

Knows nothing of the service.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from typing import TextIO

BAR_WIDTH = 16
_COLORS = {"red": "31", "green": "32", "yellow": "33", "dim": "2", "bold": "1"}


class Terminal:
    """Writes to one stream; `live` lines exist on a terminal only."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self.is_live = self._stream.isatty() and os.environ.get("TERM") != "dumb"
        self._has_color = self.is_live and not os.environ.get("NO_COLOR")
        self._live_line = ""

    def line(self, text: str = "") -> None:
        """Print a line."""
        self._clear_live()
        self._write(text + "\n")

    def live(self, text: str) -> None:
        """Show a line that the next one replaces, on a terminal only."""
        shown = text[: shutil.get_terminal_size().columns - 1]
        if self.is_live and shown != self._live_line:
            self._write("\r\x1b[K" + shown)
            self._live_line = shown

    def raw(self, text: str) -> None:
        """Print a piece of text as it comes."""
        self._clear_live()
        self._write(text)

    def clear_screen(self) -> None:
        """Clear the screen, on a terminal only."""
        if self.is_live:
            self._write("\x1b[H\x1b[2J")

    def colored(self, text: str, color: str) -> str:
        """The text in a color, if the terminal shows colors."""
        return f"\x1b[{_COLORS[color]}m{text}\x1b[0m" if self._has_color else text

    def _clear_live(self) -> None:
        if self._live_line:
            self._write("\r\x1b[K")
            self._live_line = ""

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


def make_bar(ratio: float) -> str:
    """`████░░░░ 50 %`."""
    num_full = round(BAR_WIDTH * min(max(ratio, 0.0), 1.0))
    return f"{'█' * num_full}{'░' * (BAR_WIDTH - num_full)} {ratio * 100:3.0f} %"


def make_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with columns of equal width; the first row is the heading."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def format_duration(seconds: float) -> str:
    """`4.2 s`, `3 min 12 s`, `5 h 2 min`, `3 d 4 h`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = int(seconds)
    for unit_s, unit, lesser_s, lesser in (
        (86_400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= unit_s:
            return f"{whole // unit_s} {unit} {whole % unit_s // lesser_s} {lesser}"
    raise AssertionError


def format_bytes(num_bytes: float) -> str:
    """`512 MB`, `8.8 GB`."""
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.0f} MB"
