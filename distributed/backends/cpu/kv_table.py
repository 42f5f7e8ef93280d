"""KV of running sequences in NumPy arrays: the slot table of `distributed.backends.kv_cache`, written in
place.

Same rules (who has which slot is rank 0's decision; rows never move; padding to the right) and same growth.
"""

from __future__ import annotations

import math
import mmap
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distributed.backends.cpu.compiling import Float32Array
from distributed.backends.kv_cache import SlotTable
from distributed.planning.kv_sizes import grown
from distributed.planning.step import StageStep


@dataclass(frozen=True)
class View:
    """How one step sees its table: the same for every layer. B rows, T columns, S cached tokens."""

    step: StageStep
    shape: tuple[int, int]  # rows and tokens that the table has for this step
    rows: slice | list[int]  # the slots of the step's rows
    slots: NDArray[np.int64]  # the same, (B,)
    num_kv_tokens: int
    num_seen: NDArray[np.int64]  # (B,): tokens that a row's first new one sees, itself among them
    positions: NDArray[np.intp]  # (B * T,)
    written: NDArray[np.intp] | None  # rows with a new token where T = 1; None: all
    written_slots: NDArray[np.intp]
    written_offsets: NDArray[np.intp]
    mask: Float32Array | None  # (B, 1, 1, S) to add to scores where T = 1; None: all may be seen


def make_view(step: StageStep, shape: tuple[int, int]) -> View:
    """Return what all layers need to know of a step."""
    offsets = np.array(step.offsets, np.intp)
    num_kv_tokens = step.num_kv_tokens
    is_range = step.slots == tuple(range(step.slots[0], step.slots[0] + step.num_rows))
    written = np.flatnonzero(step.counts)
    mask = None
    if step.num_tokens == 1 and min(step.offsets) + 1 < num_kv_tokens:
        is_hidden = np.arange(num_kv_tokens) > offsets[:, None]
        mask = np.where(is_hidden, np.float32(-np.inf), np.float32(0))[:, None, None, :]
    return View(
        step=step,
        shape=shape,
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
        self.make_room(view.shape, keys.shape[2:])
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
        """Copy the first tokens of a row of `source`, which may be this layer, into a row that is there."""
        self.keys[to_slot, :, :num_tokens] = source.keys[from_slot, :, :num_tokens]
        self.values[to_slot, :, :num_tokens] = source.values[from_slot, :, :num_tokens]
        self._num_written[to_slot] = num_tokens

    def make_room(
        self, shape: tuple[int, int], heads: tuple[int, ...], slots: tuple[int, ...] | None = None
    ) -> None:
        """Have so many rows and tokens of `heads` (H, D); row i is the old row `slots[i]`."""
        if (self.keys.shape[0], self.keys.shape[2]) == shape and slots is None:
            return
        kept = list(range(min(len(self._num_written), shape[0]))) if slots is None else list(slots)
        counts = [min(self._num_written[slot], shape[1]) for slot in kept]
        for name in ("keys", "values"):
            grown, old = _make_untouched((shape[0], heads[0], shape[1], heads[1])), getattr(self, name)
            for row, (slot, count) in enumerate(zip(kept, counts, strict=True)):
                grown[row, :, :count] = old[slot, :, :count]
            setattr(self, name, grown)
        self._num_written = counts + [0] * (shape[0] - len(counts))

    def resize(self, shape: tuple[int, int], slots: tuple[int, ...]) -> None:
        """Keep the rows `slots`, or all where there are none, in another size."""
        if not shape[0]:
            self.keys = self.values = np.empty((0, 0, 0, 0), np.float32)
            self._num_written = []
        elif len(self._num_written):
            self.make_room(shape, (self.keys.shape[1], self.keys.shape[3]), slots or None)

    def clear(self, slot: int, start: int, end: int) -> None:
        """Set a row's tokens to zero."""
        if len(self._num_written):
            self.keys[slot, :, start:end] = 0
            self.values[slot, :, start:end] = 0


def _make_untouched(shape: tuple[int, ...]) -> Float32Array:
    """Return zeros that take no memory until they are written: what a mask hides must be finite all the same.

    np.zeros asks for huge pages from 4 MiB on, and a huge page touched for one row is zeroed for its
    neighbours too.
    """
    memory = mmap.mmap(-1, math.prod(shape) * np.dtype(np.float32).itemsize)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, np.float32).reshape(shape)


class CpuKVTable(SlotTable[LayerKV]):
    """The KV of layers that NumPy runs."""

    make_layer = LayerKV

    def begin(self, step: StageStep) -> tuple[View, list[LayerKV]]:
        """Return what `DenseLayers.forward` takes beside its input."""
        self.shape = grown(self.shape, max(step.slots) + 1, step.num_kv_tokens)
        return make_view(step, self.shape), self.layers

    def copy_prefix(self, source: CpuKVTable, from_slot: int, to_slot: int, num_tokens: int) -> None:
        """Copy the first tokens of a row of `source`, which may be this table, into a row of this one."""
        self.shape = grown(self.shape, to_slot + 1, num_tokens)
        for layer, other in zip(self.layers, source.layers, strict=True):
            layer.make_room(self.shape, (other.keys.shape[1], other.keys.shape[3]))
            layer.copy_prefix(other, from_slot, to_slot, num_tokens)
