"""What lies between the products of a layer, compiled for this processor: see `layer_code.py`.

The same work as the functions of `distributed.models.cpu.dense`, in one call each. Knows nothing of models,
settings or MLX.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distributed.compiling import CannotCompile, Float32Array, address_of, compile_code

_LANES = 8
_FLOAT_BYTES = 4
_SIGNATURES = {"norm": "pppiif", "rotate": "pppppiiii", "gate": "pppiii", "attend": "pppppppiiiii"}
_KINDS = {"p": ctypes.c_void_p, "i": ctypes.c_int64, "f": ctypes.c_float}


class LayerKernels:
    """Compiled norm, rotation, gated unit and attention for one shape of heads; for one thread at a time."""

    def __init__(self, group: int, head_dim: int) -> None:
        """Compile, about half a second.

        Args:
            group: query heads of a key head.

        Raises:
            CannotCompile: there is no compiler here, or these shapes do not fit its vectors.
        """
        try:
            from distributed import layer_code
        except ImportError as error:
            raise CannotCompile(f"llvmlite does not load: {error}") from None
        if group > layer_code.MAX_GROUP or head_dim % (2 * _LANES):
            raise CannotCompile(f"{group} heads of {head_dim} a key head do not fit its vectors")
        self._engine, _ = compile_code(layer_code.make_code(group, head_dim))
        self._norm, self._rotate, self._gate, self._attend = map(self._function, _SIGNATURES)
        self._group, self._head_dim = group, head_dim
        self._ones = np.empty(0, np.float32)
        self._scratch = np.empty(0, np.float32)

    def norm(self, x: Float32Array, weight: Float32Array, eps: float) -> Float32Array:
        """Return x (…, D), contiguous, by its root mean square, times weight (D,)."""
        out = np.empty(x.shape, np.float32)
        width = x.shape[-1]
        self._norm(address_of(x), address_of(weight), address_of(out), x.size // width, width, eps)
        return out

    def rotate(
        self, x: Float32Array, cos: Float32Array, sin: Float32Array, factors: Float32Array | None
    ) -> Float32Array:
        """Return x (P, H, D), dense but for the stride of rows, by tables (P, 1, D/2), times factors (P,)."""
        num_rows, num_heads, width = x.shape
        if factors is None:
            if len(self._ones) < num_rows:
                self._ones = np.ones(2 * num_rows, np.float32)
            factors = self._ones
        out = np.empty(x.shape, np.float32)
        self._rotate(
            *map(address_of, (x, cos, sin, factors, out)),
            num_rows, num_heads, x.strides[0] // _FLOAT_BYTES, width // 2,
        )  # fmt: skip
        return out

    def gate(self, gate: Float32Array, up: Float32Array) -> Float32Array:
        """Return silu(gate) * up of (M, N) each, dense but for one stride of rows."""
        out = np.empty(gate.shape, np.float32)
        self._gate(*map(address_of, (gate, up, out)), *gate.shape, gate.strides[0] // _FLOAT_BYTES)
        return out

    def attend(
        self,
        queries: Float32Array,
        keys: Float32Array,
        values: Float32Array,
        slots: NDArray[np.int64],
        counts: NDArray[np.int64],
    ) -> Float32Array:
        """Return softmax(q k^T) v of one new token a row, (B, H * D).

        Args:
            queries: (B, H, D), rotated and scaled; head h reads key head h // group.
            keys: and values: (slots, H // group, capacity, D).
            slots: and counts: (B,), of each row its slot and how many tokens it sees, 1 at least.
        """
        _, num_heads, capacity, head_dim = keys.shape
        stride = -(-capacity // _LANES) * _LANES + _LANES
        if self._scratch.size < self._group * stride:
            self._scratch = np.empty(self._group * stride, np.float32)
        out = np.empty((len(queries), queries.shape[1] * head_dim), np.float32)
        self._attend(
            *map(address_of, (queries, keys, values, out, slots, counts, self._scratch)),
            len(queries), num_heads, num_heads * capacity * head_dim, capacity * head_dim, stride,
        )  # fmt: skip
        return out

    def _function(self, name: str) -> Any:
        kinds = [_KINDS[kind] for kind in _SIGNATURES[name]]
        return ctypes.CFUNCTYPE(None, *kinds)(self._engine.get_function_address(name))
