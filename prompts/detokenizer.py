"""The text that each token adds to an answer.

There are three kinds of tokenizer.json (tokenizers 0.23): byte-level, where a token is bytes; byte-fallback,
where some tokens are one byte each; and others (Metaspace, WordPiece, suffixes), where a token's text may
depend on the previous token. After another token, a first space is kept. At the start of an answer, some
decoders drop it; some templates write it themselves (`Assistant:`, and in earlier turns `Assistant: yes`), so
a returned answer has the same token ids only without it. Special tokens of the model's folder, tokens that
end an answer, and ids beyond the vocabulary have no text. Knows nothing of requests.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from tokenizers import Tokenizer

_CONTEXT_DECODERS = frozenset({"BPEDecoder", "CTC"})  # a token's text depends on the previous token
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Detokenizer:
    """Returns the UTF-8 bytes of each token. All answers share it, and keep their own state."""

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
            silent: ids without text.
            has_template_space: whether the chat template writes the space before an answer.
        """
        self._has_template_space = has_template_space
        self._tokenizer, self._silent = tokenizer, silent
        kinds = {part.get("type") for part in _parts(decoder)}
        self._is_byte_level = "ByteLevel" in kinds and kinds <= {"ByteLevel", "Fuse"}
        self._has_byte_tokens = "ByteFallback" in kinds
        self._can_cache = not kinds & _CONTEXT_DECODERS
        self._cache: dict[int, bytes | None] = {}  # of tokens after another token

    def is_known(self, token_id: int) -> bool:
        """Whether the vocabulary has this id."""
        return self._tokenizer.id_to_token(token_id) is not None

    def added_bytes(self, token_id: int, before: int | None) -> bytes | None:
        """Return the bytes that a token adds, perhaps a part of a character; None: the token has no text.

        Args:
            before: the known previous token; None: this token is the first.
        """
        if before is None:
            return self._first_bytes(token_id)
        try:
            return self._cache[token_id]
        except KeyError:
            added = self._find_bytes(token_id, before)
        if self._can_cache:
            self._cache[token_id] = added
        return added

    def has_text(self, token_id: int) -> bool:
        """Whether a token is part of an answer's text."""
        return token_id not in self._silent and self.is_known(token_id)

    def bytes_alone(self, token_id: int) -> bytes:
        """Return a token's bytes as after another token; of a special token, those of its name."""
        added = self.added_bytes(token_id, token_id)
        return added if added is not None else (self._tokenizer.id_to_token(token_id) or "").encode()

    def text_of(self, token_ids: Iterable[int]) -> str:
        """Return the text of token ids that continue another text, with the names of special tokens."""
        return b"".join(map(self.bytes_alone, token_ids)).decode("utf-8", "replace")

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
    """Read a token of tokenizers' ByteLevel; a token with other characters is plain text."""
    try:
        return bytes(map(_BYTES.__getitem__, token))
    except KeyError:
        return token.encode()


def _make_byte_table() -> dict[str, int]:
    """Return the byte of each character in GPT-2's alphabet: printable bytes map to themselves."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTES = _make_byte_table()


def _parts(decoder: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """Return the decoder, or the parts of a sequence of decoders."""
    if decoder is None or decoder.get("type") != "Sequence":
        return [decoder] if decoder else []
    return [part for member in decoder.get("decoders") or () for part in _parts(member)]
