"""The parameters and the random number of a draw: pure functions of the request and the index. No MLX."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass


@dataclass(frozen=True)
class RowSampling:
    """How one row is drawn; `index` is the answer token's index."""

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    seed: int
    choice: int
    index: int

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0.0 or self.top_k == 1


def uniform(seed: int, choice: int, index: int) -> float:
    """Return the random number of a key, in [0, 1): 53 bits of a BLAKE2b hash, the same on every machine."""
    packed = struct.pack("<QIQ", seed & 0xFFFFFFFFFFFFFFFF, choice, index)
    digest = hashlib.blake2b(packed, digest_size=8, person=b"ring-sampler").digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53
