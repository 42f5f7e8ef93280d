"""Rotary position embedding from tables that the model's own MLX module fills.

Any rotation of pairs (i, i + D/2) by angles that depend on the position alone can be read off by rotating
unit vectors, whatever scaling made the angles. Whether a module is of that kind is tested, not assumed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from distributed.backends.cpu.compiling import Float32Array

_TESTED_POSITIONS = (0, 1, 37, 700, 5000)
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Rotation:
    """Tables of some positions: cosines and sines (M, 1, D/2), factors of the queries (M,)."""

    cos: Float32Array
    sin: Float32Array
    query_factors: Float32Array


class UnknownRotation(ValueError):
    """A module that rotates in another way; the caller leaves the layers to MLX."""


class Rotary:
    """Cosines and sines by position, made in growing pieces.

    Args:
        module: mlx-lm's rope, called as module(x (1, 1, T, D), offset=…).
        scale_of: factor of the queries at each position (P,) -> (P,); the softmax scale is part of it.
    """

    def __init__(
        self,
        module: Any,
        head_dim: int,
        scale_of: Callable[[NDArray[np.intp]], Float32Array],
    ) -> None:
        """Raises: UnknownRotation."""
        self.head_dim = head_dim
        self._module, self._scale_of = module, scale_of
        self._cos = self._sin = np.empty((0, head_dim // 2), np.float32)
        self._scale = np.empty(0, np.float32)
        self._check()

    def at(self, positions: NDArray[np.intp]) -> Rotation:
        """Return the tables of positions (M,)."""
        last = int(positions.max())
        if last >= len(self._cos):
            self._extend(max(512, 1 << last.bit_length()))
        return Rotation(self._cos[positions][:, None], self._sin[positions][:, None], self._scale[positions])

    def _extend(self, num_positions: int) -> None:
        half = self.head_dim // 2
        first = mx.concatenate([mx.ones((num_positions, half)), mx.zeros((num_positions, half))], axis=-1)
        rotated = np.array(self._module(first[None, None], offset=0)[0, 0].astype(mx.float32))
        self._cos, self._sin = rotated[:, :half].copy(), rotated[:, half:].copy()
        self._scale = self._scale_of(np.arange(num_positions))

    def _check(self) -> None:
        probe = mx.random.normal((1, 1, 1, self.head_dim), key=mx.random.key(0))
        for position in _TESTED_POSITIONS:
            expected = np.array(self._module(probe, offset=position)[0, 0])
            at = self.at(np.array([position]))
            rotated = rotate(np.array(probe[0, 0])[:, None], at.cos, at.sin)
            if np.abs(rotated[0] - expected).max() > _TOLERANCE:
                raise UnknownRotation(type(self._module).__name__)


def rotate(x: Float32Array, cos: Float32Array, sin: Float32Array) -> Float32Array:
    """Rotate x (P, H, D) by tables (P, 1, D/2)."""
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    out = np.empty_like(x)
    np.multiply(first, cos, out=out[..., :half])
    out[..., :half] -= second * sin
    np.multiply(second, cos, out=out[..., half:])
    out[..., half:] += first * sin
    return out
