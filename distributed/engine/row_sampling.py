"""The parameters and the random number of a draw: pure functions of the request and the index. No MLX."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class RowSampling:
    """How one row is drawn; `index` is the answer token's index.

    `mask`: the tokens that the grammar allows, one bit a token (constraints.py: Mask); None: all.
    """

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    seed: int
    choice: int
    index: int
    mask: NDArray[np.int32] | None = field(default=None, compare=False)

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0.0 or self.top_k == 1


def uniform(seed: int, choice: int, index: int) -> float:
    """Return the random number of a key, in [0, 1): 53 bits of a BLAKE2b hash, the same on every machine."""
    packed = struct.pack("<QIQ", seed & 0xFFFFFFFFFFFFFFFF, choice, index)
    digest = hashlib.blake2b(packed, digest_size=8, person=b"ring-sampler").digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53
