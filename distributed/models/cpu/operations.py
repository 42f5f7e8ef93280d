"""What a layer does between its products: norm, rotation, gated unit, attention of new tokens.

By NumPy, or compiled where LLVM can be used; both do the same. Letters: M rows times tokens, B rows, H heads,
D their width.
"""

from __future__ import annotations

import logging
from typing import Protocol

import numpy as np

from distributed.compiling import CannotCompile, Float32Array
from distributed.layer_kernels import LayerKernels
from distributed.models.cpu.attention import attend_new
from distributed.models.cpu.kv_table import LayerKV, View
from distributed.models.cpu.rotary import Rotation, rotate

_VECTOR = 8  # what compiled code reads at once

logger = logging.getLogger(__name__)


class Operations(Protocol):
    """The four operations; arrays of float32, contiguous where nothing else is said."""

    def norm(self, x: Float32Array, weight: Float32Array, eps: float) -> Float32Array:
        """Return x (…, N) by its root mean square, times weight (N,)."""

    def rotate(self, x: Float32Array, rotation: Rotation, *, scales: bool) -> Float32Array:
        """Return heads (M, H, D), rotated by their positions; `scales`: times the queries' factors.

        Args:
            x: dense but for the stride of rows.
        """

    def gate(self, gate: Float32Array, up: Float32Array) -> Float32Array:
        """Return silu(gate) * up of (M, N) each, dense but for one stride of rows."""

    def attend_new(self, queries: Float32Array, kv: LayerKV, view: View) -> Float32Array:
        """Return the attention (B, H * D) of one new token a row, queries (B, H, D)."""


class NumpyOperations:
    """All four by NumPy."""

    def norm(self, x: Float32Array, weight: Float32Array, eps: float) -> Float32Array:
        mean = np.einsum("...i,...i->...", x, x)
        mean /= x.shape[-1]
        mean += eps
        np.sqrt(mean, out=mean)
        out: Float32Array = x / mean[..., None]
        out *= weight
        return out

    def rotate(self, x: Float32Array, rotation: Rotation, *, scales: bool) -> Float32Array:
        rotated = rotate(x, rotation.cos, rotation.sin)
        if scales:
            rotated *= rotation.query_factors[:, None, None]
        return rotated

    def gate(self, gate: Float32Array, up: Float32Array) -> Float32Array:
        divisor = np.negative(gate)
        with np.errstate(over="ignore"):  # exp of a large number is inf, which divides to the 0 that is meant
            np.exp(divisor, out=divisor)
        divisor += 1
        np.divide(gate, divisor, out=divisor)
        divisor *= up
        return divisor

    def attend_new(self, queries: Float32Array, kv: LayerKV, view: View) -> Float32Array:
        return attend_new(queries, kv, view)


class CompiledOperations:
    """All four by compiled code."""

    def __init__(self, kernels: LayerKernels) -> None:
        self._kernels = kernels

    def norm(self, x: Float32Array, weight: Float32Array, eps: float) -> Float32Array:
        return self._kernels.norm(np.ascontiguousarray(x), weight, eps)

    def rotate(self, x: Float32Array, rotation: Rotation, *, scales: bool) -> Float32Array:
        factors = rotation.query_factors if scales else None
        return self._kernels.rotate(x, rotation.cos, rotation.sin, factors)

    def gate(self, gate: Float32Array, up: Float32Array) -> Float32Array:
        return self._kernels.gate(gate, up)

    def attend_new(self, queries: Float32Array, kv: LayerKV, view: View) -> Float32Array:
        return self._kernels.attend(queries, kv.keys, kv.values, view.slots, view.num_seen)


def make_operations(num_heads: int, num_kv_heads: int, head_dim: int, widths: tuple[int, ...]) -> Operations:
    """Return compiled operations where these shapes and this machine allow them, else NumPy's.

    Args:
        widths: of what norms and gated units work on.
    """
    try:
        if any(width % _VECTOR for width in widths):
            raise CannotCompile(f"widths {widths} do not fit its vectors")
        kernels = LayerKernels(num_heads // num_kv_heads, head_dim)
    except CannotCompile as error:
        logger.info("norms and attention by NumPy: %s", error)
        return NumpyOperations()
    return CompiledOperations(kernels)
