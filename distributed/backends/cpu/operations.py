"""What a layer does between its products, by NumPy: norm, rotation, gated unit, attention of new tokens.

`layer_kernels.py` does the same in compiled code. Letters: M rows times tokens, B rows, H heads, D their
width.
"""

from __future__ import annotations

import numpy as np

from distributed.backends.cpu.attention import exponentiate
from distributed.backends.cpu.compiling import Float32Array
from distributed.backends.cpu.kv_table import LayerKV, View
from distributed.backends.cpu.rotary import Rotation, rotate


class Operations:
    """The four operations; arrays of float32, contiguous where nothing else is said."""

    def norm(self, x: Float32Array, weight: Float32Array, eps: float) -> Float32Array:
        """Return x (…, N) by its root mean square, times weight (N,)."""
        mean = np.einsum("...i,...i->...", x, x)
        mean /= x.shape[-1]
        mean += eps
        np.sqrt(mean, out=mean)
        out: Float32Array = x / mean[..., None]
        out *= weight
        return out

    def rotate(self, x: Float32Array, rotation: Rotation, *, scales: bool) -> Float32Array:
        """Return heads (M, H, D), rotated by their positions; `scales`: times the queries' factors.

        Args:
            x: dense but for the stride of rows.
        """
        rotated = rotate(x, rotation.cos, rotation.sin)
        if scales:
            rotated *= rotation.query_factors[:, None, None]
        return rotated

    def gate(self, gate: Float32Array, up: Float32Array) -> Float32Array:
        """Return silu(gate) * up of (M, N) each, dense but for one stride of rows."""
        divisor = np.negative(gate)
        with np.errstate(over="ignore"):  # exp of a large number is inf, which divides to the 0 that is meant
            np.exp(divisor, out=divisor)
        divisor += 1
        np.divide(gate, divisor, out=divisor)
        divisor *= up
        return divisor

    def attend_new(self, queries: Float32Array, kv: LayerKV, view: View) -> Float32Array:
        """Return the attention (B, H * D) of one new token a row, queries (B, H, D)."""
        queries = queries.reshape(len(queries), kv.keys.shape[1], -1, queries.shape[-1])
        keys = kv.keys[view.rows, :, : view.num_kv_tokens]
        values = kv.values[view.rows, :, : view.num_kv_tokens]
        scores = np.matmul(queries, keys.swapaxes(-1, -2))
        if view.mask is not None:
            scores += view.mask
        totals = exponentiate(scores)
        out: Float32Array = np.matmul(scores, values)
        out /= totals
        return out.reshape(len(out), -1)
