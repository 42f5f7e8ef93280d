"""KV of running sequences in NumPy arrays: the slot table of `distributed.kv_cache`, written in place.

Same rules (who has which slot is rank 0's decision; rows never move; padding to the right) and same growth.
"""

from __future__ import annotations

import math
import mmap
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distributed.frame import StageStep
from distributed.kv_sizes import round_rows, round_tokens
from distributed.packing import Float32Array


@dataclass(frozen=True)
class View:
    """How one step sees its table: the same for every layer. B rows, T columns, S cached tokens."""

    step: StageStep
    rows: slice | list[int]  # the slots of the step's rows
    slots: NDArray[np.int64]  # the same, (B,)
    num_kv_tokens: int
    num_seen: NDArray[np.int64]  # (B,): tokens that a row's first new one sees, itself among them
    positions: NDArray[np.intp]  # (B * T,)
    written: NDArray[np.intp] | None  # rows with a new token where T = 1; None: all
    written_slots: NDArray[np.intp]
    written_offsets: NDArray[np.intp]
    mask: Float32Array | None  # (B, 1, 1, S) to add to scores where T = 1; None: all may be seen


def make_view(step: StageStep) -> View:
    """Return what all layers need to know of a step."""
    offsets = np.array(step.offsets, np.intp)
    num_kv_tokens = max(step.offsets) + step.num_tokens
    is_range = step.slots == tuple(range(step.slots[0], step.slots[0] + step.num_rows))
    written = np.flatnonzero(step.counts)
    mask = None
    if step.num_tokens == 1 and min(step.offsets) + 1 < num_kv_tokens:
        is_hidden = np.arange(num_kv_tokens) > offsets[:, None]
        mask = np.where(is_hidden, np.float32(-np.inf), np.float32(0))[:, None, None, :]
    return View(
        step=step,
        rows=slice(step.slots[0], step.slots[0] + step.num_rows) if is_range else list(step.slots),
        slots=np.array(step.slots, np.int64),
        num_kv_tokens=num_kv_tokens,
        num_seen=offsets.astype(np.int64) + 1,
        positions=(offsets[:, None] + np.arange(step.num_tokens)).reshape(-1),
        written=None if len(written) == step.num_rows else written,
        written_slots=np.array(step.slots, np.intp)[written],
        written_offsets=offsets[written],
        mask=mask,
    )


class LayerKV:
    """One layer's keys and values: (rows, H, capacity, D) each, of no rows until the first write.

    Memory of tokens that were never written is not touched, so that a table that grows for one long row costs
    what its rows hold, in time and in memory.
    """

    def __init__(self) -> None:
        self.keys = self.values = np.empty((0, 0, 0, 0), np.float32)
        self._num_written: list[int] = []  # of each row: what lies behind is of no use to anybody

    @property
    def num_bytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    def write(self, view: View, keys: Float32Array, values: Float32Array) -> None:
        """Write a step's keys and values, (B, T, H, D) each; only what its rows count."""
        step = view.step
        self._grow(max(step.slots) + 1, view.num_kv_tokens, keys.shape[2:])
        for slot, start, count in zip(step.slots, step.offsets, step.counts, strict=True):
            if count:
                self._num_written[slot] = start + count
        if step.num_tokens == 1:
            chosen = slice(None) if view.written is None else view.written
            self.keys[view.written_slots, :, view.written_offsets] = keys[chosen, 0]
            self.values[view.written_slots, :, view.written_offsets] = values[chosen, 0]
            return
        for row, (slot, start, count) in enumerate(zip(step.slots, step.offsets, step.counts, strict=True)):
            self.keys[slot, :, start : start + count] = keys[row, :count].swapaxes(0, 1)
            self.values[slot, :, start : start + count] = values[row, :count].swapaxes(0, 1)

    def copy_prefix(self, source: LayerKV, from_slot: int, to_slot: int, num_tokens: int) -> None:
        """Copy the first tokens of a row of `source`, which may be this layer, into a row of this one."""
        keys = source.keys[from_slot, :, :num_tokens]
        values = source.values[from_slot, :, :num_tokens]
        self._grow(to_slot + 1, num_tokens, (keys.shape[0], keys.shape[2]))
        self.keys[to_slot, :, :num_tokens] = keys
        self.values[to_slot, :, :num_tokens] = values
        self._num_written[to_slot] = num_tokens

    def _grow(self, num_rows: int, num_tokens: int, heads: tuple[int, ...]) -> None:
        rows, _, capacity, _ = self.keys.shape
        if num_rows <= rows and num_tokens <= capacity:
            return
        shape = (
            max(rows, round_rows(num_rows)), heads[0],
            max(capacity, round_tokens(num_tokens)), heads[1],
        )  # fmt: skip
        for name in ("keys", "values"):
            grown, old = _make_untouched(shape), getattr(self, name)
            for row, count in enumerate(self._num_written):
                grown[row, :, :count] = old[row, :, :count]
            setattr(self, name, grown)
        self._num_written += [0] * (shape[0] - rows)


def _make_untouched(shape: tuple[int, ...]) -> Float32Array:
    """Return zeros that take no memory until they are written: what a mask hides must be finite all the same.

    np.zeros asks for huge pages from 4 MiB on, and a huge page touched for one row is zeroed for its
    neighbours too.
    """
    memory = mmap.mmap(-1, math.prod(shape) * np.dtype(np.float32).itemsize)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, np.float32).reshape(shape)


class CpuKVTable:
    """The KV of one stage's layers for the rows of one table; serves `distributed.stage` as KVTable does."""

    def __init__(self, num_layers: int) -> None:
        self.layers = [LayerKV() for _ in range(num_layers)]
        self.arrays: list[object] = []  # nothing is lazy here

    def begin(self, step: StageStep) -> tuple[View, list[LayerKV]]:
        """Return what `DenseLayers.forward` takes beside its input."""
        return make_view(step), self.layers

    def copy_prefix(self, source: CpuKVTable, from_slot: int, to_slot: int, num_tokens: int) -> None:
        """Copy the first tokens of a row of `source`, which may be this table, into a row of this one."""
        for layer, other in zip(self.layers, source.layers, strict=True):
            layer.copy_prefix(other, from_slot, to_slot, num_tokens)

    def reset(self) -> None:
        """Drop all rows and their memory."""
        self.layers = [LayerKV() for _ in self.layers]

    @property
    def num_bytes(self) -> int:
        return sum(layer.num_bytes for layer in self.layers)
