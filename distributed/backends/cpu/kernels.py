"""Products with packed weights, in code that LLVM makes for this processor when a rank starts.

A BLAS packs a weight anew in each product; here it is packed once, and read at the speed of the memory. A
row's result is the same to the last bit however many rows and threads there are. The code itself is in
`kernel_code.py`. Knows nothing of models, settings or MLX.
"""

from __future__ import annotations

import ctypes
import mmap
import threading
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from distributed.backends.cpu import kernel_code
from distributed.backends.cpu.compiling import Float32Array, address_of, compile_code, count_lanes
from distributed.backends.cpu.kernel_code import (
    FLOAT_BYTES,
    JOB_BYTES,
    LINE_BYTES,
    MAX_BLOCK_ROWS,
    UNROLLED,
    VECTORS,
)

_CHUNKS_PER_THREAD = 8  # of a product that several threads share
_BLOCKS_AHEAD = 4  # the next panel is asked for by so many blocks of rows at most
_NEAR_BYTES = 2048  # the others ask for what they read soon themselves
_ARENA_BYTES = 32 * 2**20


class Kernels:
    """Compiled code, and the threads that share its products; for one thread at a time."""

    def __init__(self, lanes: int | None = None) -> None:
        """Compile, about half a second.

        Args:
            lanes: floats in a vector, a key of MAX_BLOCK_ROWS; None: as many as a register holds here.

        Raises:
            CannotCompile: nothing can be compiled here.
        """
        lanes = lanes or count_lanes()
        self._engine, self._processor = compile_code(kernel_code.make_code(lanes))
        self.panel_width, self._max_block_rows = VECTORS * lanes, MAX_BLOCK_ROWS[lanes]
        whole, pointer = ctypes.c_int64, ctypes.c_void_p
        self._multiply = ctypes.CFUNCTYPE(
            None, pointer, pointer, pointer, pointer, whole, whole, pointer, whole, whole, whole, whole
        )(self._engine.get_function_address("multiply"))
        help_address = self._engine.get_function_address("help")
        self._help = ctypes.CFUNCTYPE(None, pointer, pointer)(help_address)
        self._job = _Arena().take(JOB_BYTES)
        self._job_address = address_of(self._job)
        self._blocks: dict[tuple[int, int], tuple[int, NDArray[np.int64], int]] = {}
        self._arena = _Arena()
        self._helpers: list[_Helper] = []
        self._num_threads = 1

    def __str__(self) -> str:
        return f"our kernels, compiled for {self._processor}"

    def use_threads(self, num_threads: int) -> None:
        """Let so many threads share the products that follow; the others sleep, the first is the caller."""
        while len(self._helpers) < num_threads - 1:
            self._helpers.append(_Helper(self))
        for place, helper in enumerate(self._helpers):
            helper.help(is_wanted=place < num_threads - 1)
        self._num_threads = num_threads

    def help(self, flag_address: int) -> None:
        """Share products, as another thread, until the flag (int64) is zero."""
        self._help(self._job_address, flag_address)

    @staticmethod
    def can_pack(depth: int) -> bool:
        """Whether a weight of this depth K can be packed."""
        return depth % UNROLLED == 0

    def pack(self, weight: Float32Array) -> PackedPanels:
        """Return a packed copy of a weight (N, K), to multiply with."""
        width, depth = weight.shape
        num_whole, num_left = divmod(width, self.panel_width)
        num_panels = num_whole + (num_left > 0)
        panels = self._arena.take(num_panels * self.panel_width * depth * FLOAT_BYTES)
        shaped = panels.reshape(num_panels, depth, self.panel_width)
        whole = weight[: width - num_left].reshape(num_whole, self.panel_width, depth)
        shaped[:num_whole] = whole.swapaxes(1, 2)
        if num_left:  # the arena's memory is zero
            shaped[-1, :, :num_left] = weight[width - num_left :].T
        table = address_of(panels) + np.arange(num_panels, dtype=np.int64) * shaped[0].nbytes
        return PackedPanels(self, width, table, [panels])

    def join(self, weights: Sequence[PackedPanels]) -> PackedPanels | None:
        """Return one weight of all of those, in the same memory; None unless they are whole panels."""
        if any(weight.width % self.panel_width for weight in weights):
            return None
        return PackedPanels(
            self,
            sum(weight.width for weight in weights),
            np.concatenate([weight.table for weight in weights]),
            [part for weight in weights for part in weight.memory],
        )

    def multiply(self, x: Float32Array, table_address: int, out: Float32Array) -> None:
        """Write x (M, K), contiguous, times the panels of a table to out (M, N), N of whole panels."""
        (num_rows, depth), width = x.shape, out.shape[1]
        num_panels = width // self.panel_width
        per_chunk, num_chunks = num_panels, 1
        if self._num_threads > 1:
            per_chunk = max(1, num_panels // (self._num_threads * _CHUNKS_PER_THREAD))
            num_chunks = -(-num_panels // per_chunk)
        blocks, _, num_blocks = self._blocks.get((num_rows, depth)) or self._plan_blocks(num_rows, depth)
        self._multiply(
            self._job_address, address_of(x), table_address, address_of(out), width, depth,
            blocks, num_blocks, num_panels, per_chunk, num_chunks,
        )  # fmt: skip

    def _plan_blocks(self, num_rows: int, depth: int) -> tuple[int, NDArray[np.int64], int]:
        """Return how the rows of a product go through a panel: address, the array it is of, and length."""
        parts = _even_parts(num_rows, self._max_block_rows)
        panel_bytes = depth * self.panel_width * FLOAT_BYTES
        shares = _ahead_shares(min(len(parts), _BLOCKS_AHEAD))
        asked, entries = 0, []
        for place, (start, count) in enumerate(parts):
            num_quarters, ahead = 4, _NEAR_BYTES
            if place < len(shares):
                num_quarters, ahead = shares[place], panel_bytes + asked * panel_bytes // 4
                asked += num_quarters
            kernel = self._engine.get_function_address(kernel_code.kernel_name(count, num_quarters))
            entries.append((kernel, start, ahead))
        array = np.array(entries, np.int64)
        plan = self._blocks[num_rows, depth] = (address_of(array), array, len(entries))
        return plan


class PackedPanels:
    """A weight (N, K) in panels; called with x (M, K), contiguous, gives (M, N).

    `table` holds the panels' addresses, `memory` what they lie in.
    """

    def __init__(
        self, kernels: Kernels, width: int, table: NDArray[np.int64], memory: list[Float32Array]
    ) -> None:
        self.width, self.table, self.memory = width, table, memory
        self.num_bytes = sum(part.nbytes for part in memory)
        self._kernels, self._address = kernels, address_of(table)
        self._padded_width = len(table) * kernels.panel_width

    def __call__(self, x: Float32Array) -> Float32Array:
        assert x.flags.c_contiguous
        out = np.empty((len(x), self._padded_width), np.float32)
        self._kernels.multiply(x, self._address, out)
        return out if self.width == self._padded_width else np.ascontiguousarray(out[:, : self.width])


class _Helper:
    """A thread that shares products while it is wanted, spinning between them, and sleeps while it is not.

    The thread never ends, so it keeps the kernels, whose code it runs."""

    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels
        self._flag = _Arena().take(LINE_BYTES).view(np.int64)
        self._flag_address = address_of(self._flag)
        self._event = threading.Event()
        threading.Thread(target=self._run, name="products", daemon=True).start()

    def help(self, *, is_wanted: bool) -> None:
        if is_wanted == self._event.is_set():
            return
        self._flag[0] = is_wanted
        if is_wanted:
            self._event.set()
        else:
            self._event.clear()

    def _run(self) -> None:
        while True:
            self._event.wait()
            self._kernels.help(self._flag_address)


class _Arena:
    """Memory for packed weights, zero at first: large pieces, so that the system can use huge pages."""

    def __init__(self) -> None:
        self._free = np.empty(0, np.float32)

    def take(self, num_bytes: int) -> Float32Array:
        """Return memory that begins on a cache line."""
        num_floats = -(-num_bytes // LINE_BYTES) * LINE_BYTES // FLOAT_BYTES
        if num_floats > self._free.size:
            size = max(num_floats * FLOAT_BYTES, min(_ARENA_BYTES, 32 * num_bytes))
            piece = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            if num_bytes > mmap.PAGESIZE and hasattr(mmap, "MADV_HUGEPAGE"):
                piece.madvise(mmap.MADV_HUGEPAGE)
            self._free = np.frombuffer(piece, np.float32)
        taken, self._free = self._free[:num_floats], self._free[num_floats:]
        return taken[: num_bytes // FLOAT_BYTES]


def _even_parts(total: int, most: int) -> list[tuple[int, int]]:
    """Split into (start, count), as few as can be and as even as can be."""
    num_parts = -(-total // most)
    bounds = [total * part // num_parts for part in range(num_parts + 1)]
    return [(start, end - start) for start, end in pairwise(bounds)]


def _ahead_shares(num_blocks: int) -> tuple[int, ...]:
    """How many of a panel's quarters each of the first blocks asks for; all of it together."""
    return {1: (4,), 2: (2, 2), 3: (2, 1, 1)}.get(num_blocks, (1,) * _BLOCKS_AHEAD)
