"""Matrix products on NumPy arrays: with packed weights, or by the BLAS that MLX uses too.

The BLAS's symbols are looked up in the process, so whichever comes first there serves MLX and us alike.
Knows nothing of layers.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from distributed.backends.cpu.compiling import CannotCompile, Float32Array, address_of
from distributed.backends.cpu.kernel_code import FLOAT_BYTES
from distributed.backends.cpu.kernels import Kernels, PackedPanels
from distributed.planning.checkpoint import ModelError

# The product with a vocabulary's worth of rows takes less time in blocks that stay in the cache.
MAX_WIDTH, BLOCK_WIDTH = 8192, 768
_ROW_MAJOR, _PLAIN, _TRANSPOSED = 101, 111, 112  # CBLAS_LAYOUT, CBLAS_TRANSPOSE

Product = Callable[[Float32Array], Float32Array]  # x (M, K) contiguous -> (M, N)

logger = logging.getLogger(__name__)


class NoBlas(RuntimeError):
    """No BLAS with a C interface is loaded; the caller leaves the layers to MLX."""


class NoPackedProducts(ModelError):
    """CPU_PRODUCTS names what cannot be used here; the start stops with this sentence."""


class Blas:
    """`sgemm` of the process."""

    def __init__(self) -> None:
        """Look the symbol up. Raises: NoBlas."""
        try:
            self._sgemm = ctypes.CDLL(None).cblas_sgemm
        except AttributeError as error:
            raise NoBlas("no BLAS is loaded") from error
        whole, real, pointer = ctypes.c_int, ctypes.c_float, ctypes.c_void_p
        last = (real, pointer, whole, pointer, whole, real, pointer, whole)
        self._sgemm.argtypes = (whole, whole, whole, whole, whole, whole, *last)
        self._sgemm.restype = None

    def multiply(self, x: Float32Array, weight: Float32Array, weight_address: int) -> Float32Array:
        """Return x (M, K) times weight (N, K) transposed, (M, N); both contiguous.

        A single row goes twice: two rows take less time than one.
        """
        (num_rows, depth), width = x.shape, weight.shape[0]
        if num_rows == 1:
            return self.multiply(np.repeat(x, 2, axis=0), weight, weight_address)[:1]
        out = np.empty((num_rows, width), np.float32)
        x_address, out_address = address_of(x), address_of(out)
        block = BLOCK_WIDTH if width > MAX_WIDTH else width
        for start in range(0, width, block):
            self._sgemm(
                _ROW_MAJOR, _PLAIN, _TRANSPOSED, num_rows, min(block, width - start), depth,
                1.0, x_address, depth, weight_address + start * depth * FLOAT_BYTES, depth,
                0.0, out_address + start * FLOAT_BYTES, width,
            )  # fmt: skip
        return out


def choose_kernels(choice: str) -> Kernels | None:
    """Return what multiplies with packed weights; None: the BLAS multiplies, with weights as they are.

    Args:
        choice: a value of CPU_PRODUCTS.

    Raises:
        NoPackedProducts: they were asked for by name and cannot be used.
    """
    kernels = None
    try:
        kernels = Kernels() if choice != "blas" else None
    except CannotCompile as error:
        fix = f". Fix it with: {error.fix}" if error.fix else ""
        if choice == "kernels":
            raise NoPackedProducts(f"CPU_PRODUCTS=kernels, but {error}{fix}") from None
        logger.log(
            logging.WARNING if fix else logging.INFO, "no products with packed weights: %s%s", error, fix
        )
    logger.info("products by %s", kernels or "the BLAS")
    return kernels


class Linear:
    """A linear layer: x (M, K) -> (M, N)."""

    def __init__(self, product: Product, width: int, bias: Float32Array | None) -> None:
        self.width = width
        self._product, self._bias = product, bias

    def __call__(self, x: Float32Array) -> Float32Array:
        return self.add_bias(self._product(x))

    def add_bias(self, out: Float32Array) -> Float32Array:
        """Add the bias in place, where there is one."""
        if self._bias is not None:
            out += self._bias
        return out


class Linears:
    """Linear layers of one input: x (M, K) -> (M, N) each, as columns of one result where they are joined."""

    def __init__(self, parts: list[Linear], joined: PackedPanels | None) -> None:
        """Args: joined: the product with all their weights; None: each on its own."""
        self._parts, self._joined = parts, joined
        bounds = accumulate((part.width for part in parts), initial=0)
        self._columns = [slice(start, end) for start, end in pairwise(bounds)]

    def __call__(self, x: Float32Array) -> list[Float32Array]:
        if self._joined is None:
            return [part(x) for part in self._parts]
        out = self._joined(x)
        pairs = zip(self._parts, self._columns, strict=True)
        return [part.add_bias(out[:, columns]) for part, columns in pairs]


def on_blas(blas: Blas, weight: Float32Array) -> Product:
    """Return the product with a weight (N, K), contiguous, as it lies in memory."""
    address = address_of(weight)
    return lambda x: blas.multiply(x, weight, address)


def view(array: Any) -> Float32Array:
    """Return a contiguous NumPy view of an evaluated MLX array, without a copy where there need be none."""
    return np.ascontiguousarray(np.asarray(array), dtype=np.float32)
