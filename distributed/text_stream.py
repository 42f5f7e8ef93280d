"""From token ids to the text that may be shown: incomplete UTF-8 and possible stop strings are held back.

A pure function of the ids, so a resumed answer replays its logged ids and is where it was.
"""

from __future__ import annotations

import copy
from typing import Any


class TextStream:
    """The text of one answer, token by token."""

    def __init__(self, detokenizer: Any, stop: tuple[str, ...]) -> None:
        """
        Args:
            detokenizer: an mlx_lm streaming detokenizer of the model; copied, so that its vocabulary map is
            shared. stop: strings that end the answer and are not part of it.
        """
        self._detokenizer = copy.copy(detokenizer)
        self._detokenizer.reset()
        self._stop = stop
        self._held = ""
        self.is_stopped = False

    def add(self, token_id: int) -> str:
        """Take one token; return the text that is now certain. A complete stop string sets `is_stopped`."""
        self._detokenizer.add_token(token_id)
        return self._release(self._detokenizer.last_segment)

    def finish(self) -> str:
        """Return what was held back, at the end of an answer."""
        self._detokenizer.finalize()
        text = self._release(self._detokenizer.last_segment)
        rest, self._held = self._held, ""
        return text + rest

    def _release(self, text: str) -> str:
        if self.is_stopped:
            return ""
        self._held += text
        ends = [at for at in (self._held.find(stop) for stop in self._stop) if at >= 0]
        if ends:
            self.is_stopped = True
            text, self._held = self._held[: min(ends)], ""
            return text
        keep = max((_overlap(self._held, stop) for stop in self._stop), default=0)
        cut = len(self._held) - keep
        text, self._held = self._held[:cut], self._held[cut:]
        return text


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` that `stop` begins with."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
