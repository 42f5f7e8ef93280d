"""What packs a weight for products on a CPU, as its users know it; who does it stands in packers.py.

Knows nothing of models, settings or MLX.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Float32Array = NDArray[np.float32]


class PackerUnusable(RuntimeError):
    """A library is missing, or has nothing for this processor; `mend` is a command, or empty."""

    def __init__(self, reason: str, mend: str = "") -> None:
        super().__init__(reason)
        self.mend = mend


class Packed(Protocol):
    """A weight (N, K) in a layout of its own; x (M, K) contiguous -> (M, N)."""

    width: int  # N

    @property
    def num_bytes(self) -> int: ...

    def __call__(self, x: Float32Array) -> Float32Array: ...


class Packer(Protocol):
    """Packs weights; its `str` names it. For one thread at a time."""

    def can_pack(self, depth: int) -> bool: ...

    def pack(self, weight: Float32Array) -> Packed: ...

    def join(self, weights: Sequence[Packed]) -> Packed | None:
        """Return one weight of all of those, of one depth, without a copy; None where that cannot be."""

    def use_threads(self, num_threads: int) -> None: ...


def address_of(array: NDArray[np.generic]) -> int:
    """Where an array's numbers begin; cheaper than `ctypes.data`."""
    return int(array.__array_interface__["data"][0])
