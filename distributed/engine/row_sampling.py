"""The parameters and the random number of a draw: pure functions of request, tokens and index. No MLX."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.int32]  # one bit a token, lowest first: (V + 31) // 32 words


@dataclass(frozen=True, eq=False)
class TokenCounts:
    """The distinct tokens of a prompt and its answer so far, and how often the answer has each."""

    ids: NDArray[np.intp]
    nums: NDArray[np.float32]

    @classmethod
    def of(cls, token_ids: Items[int], num_prompt_tokens: int) -> TokenCounts:
        """Count the tokens of a prompt with the answer behind it."""
        ids, places = np.unique(np.array(token_ids, np.intp), return_inverse=True)
        nums = np.bincount(places[num_prompt_tokens:], minlength=len(ids))
        return cls(ids, nums.astype(np.float32))

    def plus(self, token_id: int) -> TokenCounts:
        """Return the counts with one more token of the answer."""
        is_same = self.ids == token_id
        if is_same.any():
            return TokenCounts(self.ids, self.nums + is_same)
        return TokenCounts(np.append(self.ids, token_id), np.append(self.nums, np.float32(1)))


@dataclass(eq=False, slots=True)  # one a token: a frozen one takes four times as long to make
class RowSampling:
    """How one row is drawn; `index` is the answer token's index.

    `counts`: of the tokens before it; None: no penalties. `logprobs`: how many alternatives to report beside
    the token's own logprob; None: neither. `mask`: the tokens that may be drawn; None: all."""

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    seed: int
    choice: int
    index: int
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    counts: TokenCounts | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None
    mask: Mask | None = None

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0.0 or self.top_k == 1

    @property
    def has_edits(self) -> bool:
        """Whether logits change before they are drawn from."""
        return self.counts is not None or bool(self.logit_bias) or self.mask is not None

    @property
    def is_plain(self) -> bool:
        """Whether nothing but the most likely id is wanted."""
        return self.is_greedy and self.logprobs is None and not self.has_edits

    def is_settled_by(self, best: int) -> bool:
        """Whether the most likely id before edits is drawn: a mask is the only edit, and allows it."""
        has_others = self.counts is not None or bool(self.logit_bias)
        return self.is_greedy and not has_others and self.mask is not None and allows(self.mask, best)


def mask_of(token_id: int) -> Mask:
    """Return the mask that allows one token."""
    words = np.zeros(token_id // 32 + 1, np.uint32)
    words[-1] = 1 << token_id % 32
    return words.view(np.int32)


def allows(mask: Mask, token_id: int) -> bool:
    """Whether a mask allows a token; beyond its last word it allows none."""
    word, bit = divmod(token_id, 32)
    return word < len(mask) and bool(mask[word] >> bit & 1)


def uniform(seed: int, choice: int, index: int) -> float:
    """Return the random number of a key, in [0, 1): 53 bits of a BLAKE2b hash, the same on every machine."""
    packed = struct.pack("<QIQ", seed & 0xFFFFFFFFFFFFFFFF, choice, index)
    digest = hashlib.blake2b(packed, digest_size=8, person=b"ring-sampler").digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53
