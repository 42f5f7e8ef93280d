"""Products with packed weights by oneDNN (Apache-2.0), where the processor has AVX-512.

A BLAS reads a weight as it lies in memory, and packs it anew in each product. oneDNN packs it once, in the
same memory: from 4 to 16 rows a product takes half the time of mkl's, with 128 rows four fifths (one core of
an AMD EPYC 9004, 1536 x 576). A row's result is the same to the last bit however many rows it travels with.

Spoken to through its C interface, version 3 (https://uxlfoundation.github.io/oneDNN/, "C API"). The package
is the last one of oneDNN built for GCC's OpenMP; newer ones ask for Intel's SYCL runtime, 1 GB.
Knows nothing of models, settings or MLX.
"""

from __future__ import annotations

import ctypes
import glob
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from distributed.packing import Float32Array, Packed, PackerUnusable, address_of

PACKAGE = "onednn-cpu-gomp==2023.2.0"
# Fewer rows than this go in as this many: 4 rows take 0.75 of one row's time, 2 take 1.2 of it.
MIN_ROWS = 4
# More rows go in blocks of this many: larger ones gain nothing, and each number of rows has its own kernel.
MAX_ROWS = 128
_TYPICAL_ROWS = 16  # the layout does not depend on it, but one has to be named
_ALIGNMENT = 64

# Values of dnnl_types.h, oneDNN 3.
_OK, _CPU, _IN_ORDER, _FLOAT32, _ANY_LAYOUT = 0, 1, 1, 3, 1
_QUERY_NAME, _QUERY_WEIGHTS = 8, 131
_SOURCE, _RESULT, _WEIGHTS = 1, 17, 33
_FAST_KERNELS = b"brg:avx512"


class _Argument(ctypes.Structure):
    """dnnl_exec_arg_t."""

    _fields_ = (("kind", ctypes.c_int), ("memory", ctypes.c_void_p))


class _Version(ctypes.Structure):
    """dnnl_version_t, as far as it is read."""

    _fields_ = (("major", ctypes.c_int), ("minor", ctypes.c_int), ("patch", ctypes.c_int))


@dataclass(frozen=True)
class _Kernel:
    """A primitive for one number of rows and one shape of weight, with its places for what it works on."""

    primitive: ctypes.c_void_p
    weight_layout: ctypes.c_void_p
    name: bytes
    source: ctypes.c_void_p
    result: ctypes.c_void_p
    arguments: Any  # the array of _Argument that execute takes: source, weights, result


class OneDnn:
    """The library with the kernels that were asked for so far; for one thread at a time.

    What the library makes lives as long as the process: a few hundred kernels at most.
    """

    def __init__(self) -> None:
        """Load it. Raises: PackerUnusable."""
        self._library = _load()
        self._library.dnnl_version.restype = ctypes.POINTER(_Version)
        version = self._library.dnnl_version().contents
        self.version = f"{version.major}.{version.minor}.{version.patch}"
        if version.major != 3:
            raise PackerUnusable(f"oneDNN {self.version} is not version 3", f"pip install {PACKAGE}")
        pointer = ctypes.c_void_p
        self._library.dnnl_primitive_desc_query_md.restype = pointer
        self._library.dnnl_memory_desc_get_size.restype = ctypes.c_size_t
        self._library.dnnl_primitive_execute.argtypes = (pointer, pointer, ctypes.c_int, pointer)
        self._library.dnnl_memory_set_data_handle.argtypes = (pointer, pointer)
        self._engine, self._stream = pointer(), pointer()
        self._call("engine_create", ctypes.byref(self._engine), _CPU, ctypes.c_size_t(0))
        self._call("stream_create", ctypes.byref(self._stream), self._engine, _IN_ORDER)
        self._layouts: dict[tuple[int, int], ctypes.c_void_p] = {}
        self._kernels: dict[tuple[int, int, int, int], _Kernel] = {}
        # A kernel runs on as many threads as OpenMP would start when it was made.
        self._count_threads = self._library.omp_get_max_threads
        name = self._make_kernel(_TYPICAL_ROWS, 64, 64, self._any_layout(64, 64)).name
        if not name.startswith(_FAST_KERNELS):
            raise PackerUnusable("it has no fast kernels for this processor (no AVX-512)")

    def __str__(self) -> str:
        return f"oneDNN {self.version}"

    def use_threads(self, num_threads: int) -> None:
        """Let so many threads share the products that follow: GCC's OpenMP, which this library brings."""
        self._library.omp_set_num_threads(num_threads)

    @staticmethod
    def can_pack(depth: int) -> bool:
        """Whether a weight of this depth K can be packed: any."""
        return depth > 0

    @staticmethod
    def join(weights: Sequence[Packed]) -> None:
        """Each has a layout of its own: no."""

    def pack(self, weight: Float32Array) -> PackedWeight:
        """Return a packed copy of a weight (N, K), contiguous, to multiply with."""
        width, depth = weight.shape
        layout = self._layout_for(width, depth)
        num_bytes = self._library.dnnl_memory_desc_get_size(layout)
        buffer = _aligned(num_bytes)
        plain = self._layout(depth, width, (1, depth))
        reorder, described = ctypes.c_void_p(), ctypes.c_void_p()
        self._call(
            "reorder_primitive_desc_create",
            ctypes.byref(described), plain, self._engine, layout, self._engine, None,
        )  # fmt: skip
        self._call("primitive_create", ctypes.byref(reorder), described)
        memory = self._memory(layout, buffer)
        arguments = (_Argument * 2)(
            _Argument(_SOURCE, self._memory(plain, weight)), _Argument(_RESULT, memory)
        )
        self._call("primitive_execute", reorder, self._stream, 2, ctypes.addressof(arguments))
        return PackedWeight(self, (width, depth), buffer, memory)

    def multiply(self, x: Float32Array, out: Float32Array, depth: int, memory: ctypes.c_void_p) -> None:
        """Write x (M, K) times a packed weight, transposed, to out (M, N); both contiguous, M >= MIN_ROWS."""
        num_rows, width = out.shape
        x_address, out_address, num_threads = address_of(x), address_of(out), self._count_threads()
        for start in range(0, num_rows, MAX_ROWS):
            rows = min(MAX_ROWS, num_rows - start)
            kernel = self._kernels.get((rows, width, depth, num_threads))
            if kernel is None:
                kernel = self._make_kernel(rows, width, depth, self._layout_for(width, depth))
                self._kernels[rows, width, depth, num_threads] = kernel
            kernel.arguments[1].memory = memory
            self._library.dnnl_memory_set_data_handle(kernel.source, x_address + start * depth * x.itemsize)
            self._library.dnnl_memory_set_data_handle(kernel.result, out_address + start * width * x.itemsize)
            status = self._library.dnnl_primitive_execute(
                kernel.primitive, self._stream, 3, ctypes.addressof(kernel.arguments)
            )
            if status != _OK:
                raise RuntimeError(f"oneDNN's product of {rows} rows ({width} x {depth}) failed: {status}")

    def _layout_for(self, width: int, depth: int) -> ctypes.c_void_p:
        """The layout that the kernels like best; the same for all numbers of rows."""
        if (width, depth) not in self._layouts:
            kernel = self._make_kernel(_TYPICAL_ROWS, width, depth, self._any_layout(depth, width))
            self._layouts[width, depth] = kernel.weight_layout
        return self._layouts[width, depth]

    def _make_kernel(self, num_rows: int, width: int, depth: int, weights: ctypes.c_void_p) -> _Kernel:
        source, result = self._layout(num_rows, depth, (depth, 1)), self._layout(num_rows, width, (width, 1))
        described, primitive, name = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_char_p()
        self._call(
            "matmul_primitive_desc_create",
            ctypes.byref(described), self._engine, source, weights, None, result, None,
        )  # fmt: skip
        self._call("primitive_desc_query", described, _QUERY_NAME, 0, ctypes.byref(name))
        self._call("primitive_create", ctypes.byref(primitive), described)
        layout = ctypes.c_void_p(self._library.dnnl_primitive_desc_query_md(described, _QUERY_WEIGHTS, 0))
        places = [self._memory(source), self._memory(layout), self._memory(result)]
        kinds = (_SOURCE, _WEIGHTS, _RESULT)
        arguments = (_Argument * 3)(
            *(_Argument(kind, place) for kind, place in zip(kinds, places, strict=True))
        )
        return _Kernel(primitive, layout, name.value or b"", places[0], places[2], arguments)

    def _layout(self, rows: int, columns: int, strides: tuple[int, int]) -> ctypes.c_void_p:
        layout, pair = ctypes.c_void_p(), ctypes.c_int64 * 2
        self._call(
            "memory_desc_create_with_strides",
            ctypes.byref(layout), 2, pair(rows, columns), _FLOAT32, pair(*strides),
        )  # fmt: skip
        return layout

    def _any_layout(self, depth: int, width: int) -> ctypes.c_void_p:
        layout, pair = ctypes.c_void_p(), ctypes.c_int64 * 2
        self._call(
            "memory_desc_create_with_tag",
            ctypes.byref(layout), 2, pair(depth, width), _FLOAT32, _ANY_LAYOUT,
        )  # fmt: skip
        return layout

    def _memory(self, layout: ctypes.c_void_p, array: Float32Array | None = None) -> ctypes.c_void_p:
        memory = ctypes.c_void_p()
        address = ctypes.c_void_p(address_of(array) if array is not None else None)
        self._call("memory_create", ctypes.byref(memory), layout, self._engine, address)
        return memory

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, f"dnnl_{name}")(*arguments)
        if status != _OK:
            raise PackerUnusable(f"oneDNN's {name} failed with status {status}")


class PackedWeight:
    """A weight (N, K) in the layout of the kernels; called with x (M, K), contiguous, gives (M, N)."""

    def __init__(
        self, onednn: OneDnn, shape: tuple[int, int], buffer: Float32Array, memory: ctypes.c_void_p
    ) -> None:
        self._onednn, self._buffer, self._memory = onednn, buffer, memory
        self.width, self._depth = shape

    @property
    def num_bytes(self) -> int:
        return self._buffer.nbytes

    def __call__(self, x: Float32Array) -> Float32Array:
        num_rows = len(x)
        if num_rows < MIN_ROWS:
            padded = np.zeros((MIN_ROWS, self._depth), np.float32)
            padded[:num_rows] = x
            x = padded
        out = np.empty((len(x), self.width), np.float32)
        self._onednn.multiply(x, out, self._depth, self._memory)
        return out[:num_rows]


def _load() -> ctypes.CDLL:
    if not sys.platform.startswith("linux"):
        raise PackerUnusable("it is used on Linux only")
    found = sorted(glob.glob(os.path.join(sys.prefix, "lib", "libdnnl.so.3")))
    if not found:
        raise PackerUnusable("it is not installed", f"{sys.executable} -m pip install {PACKAGE}")
    try:
        return ctypes.CDLL(found[0])
    except OSError as error:
        mend = "sudo apt-get install libgomp1" if "libgomp" in str(error) else ""
        raise PackerUnusable(f"it does not load: {error}", mend) from None


def _aligned(num_bytes: int) -> Float32Array:
    """An uninitialized buffer that begins on a cache line."""
    raw = np.empty(num_bytes + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + num_bytes].view(np.float32)
