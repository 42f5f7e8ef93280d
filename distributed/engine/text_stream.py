"""From token ids to text: incomplete UTF-8 and possible stop strings are held back.

A pure function of the ids, so a resumed answer replays its logged ids and reaches the same state.
"""

from __future__ import annotations

import codecs
from typing import Protocol


class TokenTexts(Protocol):
    """The bytes that each token adds to a text (prompts/detokenizer.py)."""

    def is_known(self, token_id: int) -> bool: ...

    def added_bytes(self, token_id: int, before: int | None) -> bytes | None: ...


class TextStream:
    """The text of one answer, token by token."""

    def __init__(self, detokenizer: TokenTexts, stop: tuple[str, ...], before: int | None = None) -> None:
        """
        Args:
            stop: strings that end the answer and are not part of it.
            before: the token that the answer continues; None: the answer is a text of its own.
        """
        self._detokenizer = detokenizer
        self._stop = stop
        self._before = before
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self.is_stopped = False

    def add(self, token_id: int) -> str:
        """Add one token; return the text that is now final. A complete stop string sets `is_stopped`."""
        added = self._detokenizer.added_bytes(token_id, self._before)
        if added is None:
            return ""
        self._before = token_id
        return self._release(self._utf8.decode(added))

    def finish(self) -> str:
        """Return the text held back, at the end of an answer."""
        text = self._release(self._utf8.decode(b"", final=True))
        rest, self._held = self._held, ""
        return text + rest

    def _release(self, text: str) -> str:
        if self.is_stopped:
            return ""
        if not self._stop:
            return text
        self._held += text
        starts = ((self._held.find(stop), stop) for stop in self._stop)
        # The stop string that is complete first; of several that end there, the longest.
        found = min(((at + len(stop), at) for at, stop in starts if at >= 0), default=None)
        if found is not None:
            self.is_stopped = True
            text, self._held = self._held[: found[1]], ""
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
