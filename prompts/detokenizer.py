"""The text that each token adds to an answer: the one place where that is decided.

Three kinds of tokenizer.json (tokenizers 0.23) cover all: byte-level, where a token is bytes; byte-fallback,
where some tokens are one byte each; and the rest (Metaspace, WordPiece, suffixes), where a token's text may
depend on the token before it. The first space of a text is kept after another token. Where nothing stands
before, as at the start of an answer in a chat, some families' decoders drop it, and some templates write one
of their own there (`Assistant:` and, in earlier turns, `Assistant: yes`): an answer that is sent back has the
same token ids only without it. Special tokens that the model's
folder names and tokens that end an answer have no text, nor have ids beyond the vocabulary.
"""

import re
from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer

_LOOKING_BACK = frozenset({"BPEDecoder", "CTC"})  # a token's text depends on which one stands before it
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Detokenizer:
    """Bytes of UTF-8 by token; shared by all answers, which keep their own place."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        decoder: Mapping[str, Any] | None,
        silent: frozenset[int],
        *,
        has_template_space: bool = False,
    ) -> None:
        """
        Args:
            decoder: tokenizer.json's decoder.
            silent: ids without a text.
            has_template_space: whether the chat template writes the space before an answer.
        """
        self._has_template_space = has_template_space
        self._tokenizer, self._silent = tokenizer, silent
        kinds = {part.get("type") for part in _parts(decoder)}
        self._is_byte_level = "ByteLevel" in kinds and kinds <= {"ByteLevel", "Fuse"}
        self._has_byte_tokens = "ByteFallback" in kinds
        self._can_remember = not kinds & _LOOKING_BACK
        self._known: dict[int, bytes | None] = {}  # what tokens add that stand after another one

    def is_known(self, token_id: int) -> bool:
        """Whether the vocabulary has this id."""
        return self._tokenizer.id_to_token(token_id) is not None

    def added_bytes(self, token_id: int, before: int | None) -> bytes | None:
        """Return what a token adds to a text; a character may take several tokens. None: it leaves no trace.

        Args:
            before: the known token that stands before it; None: it is the first of a text.
        """
        if before is None:
            return self._first_bytes(token_id)
        try:
            return self._known[token_id]
        except KeyError:
            added = self._find_bytes(token_id, before)
        if self._can_remember:
            self._known[token_id] = added
        return added

    def _first_bytes(self, token_id: int) -> bytes | None:
        added = self._find_bytes(token_id, None)
        if self._has_template_space and added is not None and added.startswith(b" "):
            is_dropped = added != self._find_bytes(token_id, token_id)  # by the decoder
            return added if is_dropped else added[1:]
        return added

    def _find_bytes(self, token_id: int, before: int | None) -> bytes | None:
        token = self._tokenizer.id_to_token(token_id)
        if token is None or token_id in self._silent:
            return None
        if self._is_byte_level:
            return _byte_level_bytes(token)
        byte = _BYTE_TOKEN.fullmatch(token) if self._has_byte_tokens else None
        if byte is not None and (before is not None or int(byte[1], 16) >= 0x80):
            return bytes([int(byte[1], 16)])
        if before is None:
            return self._decode(token_id).encode()
        return self._decode(before, token_id)[len(self._decode(before)) :].encode()

    def _decode(self, *token_ids: int) -> str:
        text: str = self._tokenizer.decode(token_ids, skip_special_tokens=False)
        return text


def _byte_level_bytes(token: str) -> bytes:
    """Read a token of tokenizers' ByteLevel; one with other characters is its own text."""
    try:
        return bytes(map(_BYTES.__getitem__, token))
    except KeyError:
        return token.encode()


def _make_byte_table() -> dict[str, int]:
    """Return the byte of each character of GPT-2's alphabet: printable ones stand for themselves."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTES = _make_byte_table()


def _parts(decoder: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """A decoder, or the parts of a sequence of them."""
    if decoder is None or decoder.get("type") != "Sequence":
        return [decoder] if decoder else []
    return [part for member in decoder.get("decoders") or () for part in _parts(member)]
