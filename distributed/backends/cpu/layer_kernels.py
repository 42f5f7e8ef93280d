"""What lies between the products of a layer, compiled for this processor: see `layer_code.py`.

The same work as in `operations.py`, in one call each. Knows nothing of settings or MLX.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from distributed.backends.cpu.compiling import CannotCompile, Float32Array, address_of, compile_code
from distributed.backends.cpu.kernel_code import FLOAT_BYTES
from distributed.backends.cpu.kv_table import LayerKV, View
from distributed.backends.cpu.operations import Operations
from distributed.backends.cpu.rotary import Rotation

_SIGNATURES = {"norm": "pppiif", "rotate": "pppppiiii", "gate": "pppiii", "attend": "pppppppiiiii"}
_KINDS = {"p": ctypes.c_void_p, "i": ctypes.c_int64, "f": ctypes.c_float}


class LayerKernels(Operations):
    """Compiled operations for one shape of heads; for one thread at a time."""

    def __init__(self, group: int, head_dim: int, widths: tuple[int, ...] = ()) -> None:
        """Compile, about half a second.

        Args:
            group: query heads of a key head.
            widths: of what norms and gated units work on.

        Raises:
            CannotCompile: there is no compiler here, or these shapes do not fit its vectors.
        """
        from distributed.backends.cpu.layer_code import LANES, MAX_GROUP, make_code  # needs llvmlite

        if group > MAX_GROUP or head_dim % (2 * LANES) or any(width % LANES for width in widths):
            shapes = f"{group} heads of {head_dim} a key head, widths {widths}"
            raise CannotCompile(f"vectors of {LANES} do not fit {shapes}")
        self._engine, _ = compile_code(make_code(group, head_dim))
        self._norm, self._rotate, self._gate, self._attend = map(self._function, _SIGNATURES)
        self._group, self._lanes = group, LANES
        self._ones = np.empty(0, np.float32)
        self._scratch = np.empty(0, np.float32)

    def norm(self, x: Float32Array, weight: Float32Array, eps: float) -> Float32Array:
        x = np.ascontiguousarray(x)
        out = np.empty(x.shape, np.float32)
        width = x.shape[-1]
        self._norm(address_of(x), address_of(weight), address_of(out), x.size // width, width, eps)
        return out

    def rotate(self, x: Float32Array, rotation: Rotation, *, scales: bool) -> Float32Array:
        num_rows, num_heads, width = x.shape
        if len(self._ones) < num_rows:
            self._ones = np.ones(2 * num_rows, np.float32)
        factors = rotation.query_factors if scales else self._ones
        out = np.empty(x.shape, np.float32)
        self._rotate(
            *map(address_of, (x, rotation.cos, rotation.sin, factors, out)),
            num_rows, num_heads, x.strides[0] // FLOAT_BYTES, width // 2,
        )  # fmt: skip
        return out

    def gate(self, gate: Float32Array, up: Float32Array) -> Float32Array:
        out = np.empty(gate.shape, np.float32)
        self._gate(*map(address_of, (gate, up, out)), *gate.shape, gate.strides[0] // FLOAT_BYTES)
        return out

    def attend_new(self, queries: Float32Array, kv: LayerKV, view: View) -> Float32Array:
        _, num_heads, capacity, head_dim = kv.keys.shape
        stride = -(-capacity // self._lanes) * self._lanes + self._lanes
        if self._scratch.size < self._group * stride:
            self._scratch = np.empty(self._group * stride, np.float32)
        out = np.empty((len(queries), queries.shape[1] * head_dim), np.float32)
        arrays = (queries, kv.keys, kv.values, out, view.slots, view.num_seen, self._scratch)
        self._attend(
            *map(address_of, arrays),
            len(queries), num_heads, num_heads * capacity * head_dim, capacity * head_dim, stride,
        )  # fmt: skip
        return out

    def _function(self, name: str) -> Any:
        kinds = [_KINDS[kind] for kind in _SIGNATURES[name]]
        return ctypes.CFUNCTYPE(None, *kinds)(self._engine.get_function_address(name))
