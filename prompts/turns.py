"""Token ids of chats, turn by turn: a turn that came before is not tokenized again.

A chat comes back with its whole history at every turn, and many chats begin with the same system prompt. A
tokenizer cuts its text at special tokens before anything else, so what lies between two of them has the same
ids wherever it stands. Of those tokens the one that recurs most between turns is taken, and the ids of the
pieces between are remembered, by the piece. That this is so depends on the tokenizer (`find_separator`);
where it may not be, every text is tokenized as a whole. Knows nothing of templates and messages.
"""

import threading
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

from prompts.encoder import TextEncoder
from prompts.pieces import works_by_pieces

MAX_REMEMBERED_BYTES = 32 * 2**20
PIECE_BYTES = 512  # of what holds one piece and its owner, whatever its length


class TurnEncoder:
    """Tokenizes rendered chats; safe to use from several threads."""

    def __init__(self, encoder: TextEncoder, config: Mapping[str, Any], sample: str) -> None:
        """
        Args:
            config: what tokenizer.json says.
            sample: a rendered chat of several turns, to see which token stands between them.
        """
        self._encoder = encoder
        self.separator = find_separator(config, sample)
        self._separator_id = encoder.token_to_id(self.separator) if self.separator else None
        # By owner and piece; the one that was used last is the last.
        self._remembered: dict[tuple[str, str], array[int]] = {}
        self._num_bytes = 0
        self._lock = threading.Lock()

    def encode(self, text: str, owner: str = "") -> list[int]:
        """Number the tokens of a rendered chat.

        Args:
            owner: whose it is. Nobody can tell by the time what others have sent.
        """
        if not self.separator or self._separator_id is None:
            return self._encoder.encode(text)
        first, *rest = text.split(self.separator)
        ids = list(self._ids(owner, first))
        for piece in rest:
            ids.append(self._separator_id)
            ids.extend(self._ids(owner, piece))
        return ids

    def _ids(self, owner: str, piece: str) -> "array[int] | list[int]":
        if not piece:
            return []
        key = owner, piece
        with self._lock:
            ids = self._remembered.pop(key, None)
            if ids is not None:
                self._remembered[key] = ids
                return ids
        fresh = self._encoder.encode(piece)
        self._remember(key, fresh)
        return fresh

    def _remember(self, key: tuple[str, str], ids: list[int]) -> None:
        num_bytes = _num_bytes(key, ids)
        with self._lock:
            if key in self._remembered or num_bytes > MAX_REMEMBERED_BYTES:
                return
            self._remembered[key] = array("i", ids)
            self._num_bytes += num_bytes
            while self._num_bytes > MAX_REMEMBERED_BYTES:
                oldest = next(iter(self._remembered))
                self._num_bytes -= _num_bytes(oldest, self._remembered.pop(oldest))


def _num_bytes(key: tuple[str, str], ids: Sequence[int]) -> int:
    """How much a piece takes in memory, at most: four bytes a character, and an id."""
    return PIECE_BYTES + 4 * (len(key[1]) + len(ids))


def find_separator(config: Mapping[str, Any], sample: str) -> str | None:
    """Return the special token that recurs most in a chat, if texts may be cut at it; else None.

    Args:
        config: what tokenizer.json says (tokenizers 0.23: the added tokens are found in the raw text, the
            leftmost and longest first; what is between them is normalized, split and merged piece by piece).
        sample: a rendered chat of several turns.
    """
    if not works_by_pieces(config):
        return None
    contents = [str(token["content"]) for token in config.get("added_tokens") or ()]
    candidates = [
        str(token["content"])
        for token in config.get("added_tokens") or ()
        if token.get("special")
        and not any(token.get(flag) for flag in ("normalized", "lstrip", "rstrip", "single_word"))
    ]
    clear = [
        content
        for content in candidates
        if content in sample and not any(_may_overlap(content, other) for other in contents)
    ]
    return max(clear, key=lambda content: (sample.count(content), sample.rfind(content)), default=None)


def _may_overlap(content: str, other: str) -> bool:
    """Whether another token may take a part of this one from a text: then it is not sure to be found."""
    if content == other:
        return False
    if content in other or other in content:
        return True
    shorter = min(len(content), len(other))
    return any(
        content.startswith(other[-num:]) or other.startswith(content[-num:]) for num in range(1, shorter)
    )
