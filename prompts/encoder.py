"""Token ids of one text, from the faster of two libraries where both are sure to agree.

tokenizers defines what the ids are. It takes 2 to 4 us a token, and `Tokenizer.encode` holds the
interpreter's lock all the while: a text of 4 MB would stop every stream of the front door for 6 s. (Its
`encode_batch_fast` gives the lock back.) fastokens takes a sixth of that, and half of it for a short text
after a pause. It is used for the kinds of tokenizer that the tests compare, after `PROBES` have come out the
same; it needs 0.7 s to load, so `hasten` is called beside the serving. Knows nothing of chats.
"""

import json
import logging
from collections.abc import Iterator
from itertools import takewhile
from operator import itemgetter
from typing import Any

from tokenizers import Tokenizer

from prompts.pieces import works_by_pieces

try:
    import fastokens
except ImportError:  # no wheel for this machine
    fastokens = None

PROBES = (
    "The quick brown fox can't jump over 13 lazy dogs; it's 3.14159 km, isn't it?  Yes!\n\n\tNo\r\n",
    "def f(x: int) -> str:\n    return f'{x:>8}' + \"\\n\"  # 0xFF_00 == 65280\n",
    "Größe, naïve café, ΑΒΓ αβγ, Привет мир, שלום עולם, مرحبا, नमस्ते, สวัสดี, 北京大学 東京, 한국어 가나다",
    "e\u0301 a\u0308\u0304 \u1e9b\u0323 ﬁ ² ½ Ⅷ ١٢٣ ４２",
    "🎉👩‍👩‍👧‍👦🏳️‍🌈 🇫🇷 ☃︎ \u200b\u200d\ufeff\u00a0\u2028\u3000\x00\x1c\x85",
    " ",
    "   \n \n\n  x   ",
    "a" * 300,
    " " * 300,
    "'S 'LL 'd've",
)
_NUM_CODE_POINTS = 0x20000  # all planes with scripts in them; one in seven is looked at
_SURROGATES = range(0xD800, 0xE000)

log = logging.getLogger(__name__)


class TextEncoder:
    """Numbers the tokens of texts; safe to use from several threads."""

    def __init__(self, data: bytes) -> None:
        """
        Args:
            data: what tokenizer.json says.

        Raises:
            ValueError: it cannot be read.
        """
        self.tokenizer = Tokenizer.from_buffer(data)
        self.tokenizer.no_truncation()  # left over from training: a prompt is read whole or refused
        self.tokenizer.no_padding()
        self._quick: Any = None
        vocab = self.tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size = self.tokenizer.get_vocab_size(with_added_tokens=True)
        # A byte-level token is written with one or two bytes a byte: this is no less than what it stands for.
        self.max_token_bytes = max((len(token.encode()) for token in vocab), default=1)

    @property
    def is_quick(self) -> bool:
        return self._quick is not None

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """Number the tokens; `add_special_tokens`: with those that belong before and after any text."""
        if self._quick is not None:
            try:
                return list(self._quick.encode(text, add_special_tokens=add_special_tokens).ids)
            except ValueError:  # its regular expressions give up on, say, a million spaces
                log.debug("a text of %d characters is too much for fastokens", len(text))
        return self._encode_by_definition(text, add_special_tokens=add_special_tokens)

    def opening_ids(self) -> list[int]:
        """Return the special tokens that the tokenizer puts before any text."""
        encoding = self.tokenizer.encode("a")
        added = zip(encoding.ids, encoding.special_tokens_mask, strict=True)
        return [token_id for token_id, _ in takewhile(itemgetter(1), added)]

    def token_to_id(self, token: str) -> int | None:
        """Return the id of one token, if there is such a token."""
        token_id: int | None = self.tokenizer.token_to_id(token)
        return token_id

    def hasten(self) -> bool:
        """Load fastokens and use it from now on, unless it may say otherwise; whether it is used."""
        described = self.tokenizer.to_str()
        config = json.loads(described)
        if fastokens is None or not works_by_pieces(config):
            return False
        try:
            quick = fastokens.Tokenizer.from_json_str(described)
            is_same = all(self._is_same(quick, text) for text in _probes(config))
        except ValueError as error:
            log.info("fastokens is not used: %s", error)
            return False
        if is_same:
            self._quick = quick
        else:
            log.warning("fastokens is not used: it numbers this model's tokens otherwise")
        return is_same

    def _is_same(self, quick: Any, text: str) -> bool:
        return all(
            list(quick.encode(text, add_special_tokens=flag).ids)
            == self._encode_by_definition(text, add_special_tokens=flag)
            for flag in (False, True)
        )

    def _encode_by_definition(self, text: str, *, add_special_tokens: bool) -> list[int]:
        encodings = self.tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return list(encodings[0].ids)


def _probes(config: dict[str, Any]) -> Iterator[str]:
    yield from PROBES
    added = [str(token["content"]) for token in config.get("added_tokens") or ()]
    yield "".join(added)
    yield " x ".join(added)
    step = 7 * 256
    for start in range(0, _NUM_CODE_POINTS, step):
        numbers = (number for number in range(start, start + step, 7) if number not in _SURROGATES)
        yield "".join(map(chr, numbers))
