"""KV of running sequences: one table of slots a microbatch, right-padded, one offset a row.

Knows arrays and slots, nothing of requests, rings or budgets: rank 0 decides who has which slot and when a
table is dropped. A prefill writes straight into its row, a sequence that joins or leaves copies nobody else's
KV, and rolling back is not advancing. Full and latent (one head, two widths) caches share this code.

    keys, values of a layer: (rows, H, capacity, D), rows and capacity grow in the steps of `round_rows`,
    `round_tokens`

A layer's cache follows the protocol of mlx_lm 0.32.2 models/cache.py, so that its model classes run
unchanged: `offset`, `update_and_fetch`, `make_mask`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from distributed.frame import StageStep
from distributed.kv_sizes import round_rows, round_tokens

# Below this many rows, one slice assignment a row beats one scatter (mlx 0.32.4, CPU).
_MIN_SCATTER_ROWS = 3


@dataclass(frozen=True)
class _View:
    """How one step sees its table: the same for every layer."""

    step: StageStep
    offset: int | mx.array  # per row (B,) int32, or one int for a single row
    first_slot: int | None  # rows are the slots from here on; None: gathered by `slots`
    slots: mx.array  # (B,) int32
    num_kv_tokens: int  # S: keys and values are read up to here
    written_rows: tuple[int, ...]  # rows with new tokens; holes are not written
    scatter_slots: mx.array | None  # (W,) for one scatter of T = 1
    scatter_rows: mx.array | None
    scatter_offsets: mx.array | None


def _make_view(step: StageStep) -> _View:
    slots, single = step.slots, step.num_rows == 1
    is_range = slots == tuple(range(slots[0], slots[0] + len(slots)))
    written = tuple(i for i, count in enumerate(step.counts) if count)
    scatters = step.num_tokens == 1 and len(written) >= _MIN_SCATTER_ROWS
    return _View(
        step=step,
        offset=step.offsets[0] if single else mx.array(step.offsets, dtype=mx.int32),
        first_slot=slots[0] if is_range else None,
        slots=mx.array(slots, dtype=mx.int32),
        num_kv_tokens=max(step.offsets) + step.num_tokens,
        written_rows=written,
        scatter_slots=mx.array([slots[i] for i in written]) if scatters else None,
        scatter_rows=mx.array(written) if scatters and len(written) < len(slots) else None,
        scatter_offsets=mx.array([step.offsets[i] for i in written]) if scatters else None,
    )


class LayerCache:
    """One layer's keys and values in a table, as a model layer sees them during a step."""

    def __init__(self) -> None:
        self.keys: mx.array | None = None
        self.values: mx.array | None = None
        self._view: _View | None = None

    def begin(self, view: _View) -> None:
        self._view = view

    @property
    def view(self) -> _View:
        assert self._view is not None, "KVTable.begin comes before a step"
        return self._view

    @property
    def offset(self) -> int | mx.array:
        """Tokens already cached: an int for one row, else (B,) int32."""
        return self.view.offset

    @property
    def num_bytes(self) -> int:
        return sum(int(array.nbytes) for array in (self.keys, self.values) if array is not None)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Write this step's keys and values, (B, H, T, D); return all of the rows', (B, H, S, D)."""
        self._grow(keys, values)
        self.keys = self._write(self.keys, keys)
        self.values = self._write(self.values, values)
        return self._read(self.keys), self._read(self.values)

    def read_prefix(self, slot: int, num_tokens: int) -> tuple[mx.array, mx.array]:
        """Return a copy of the first tokens of a row, (H, T, D) each."""
        assert self.keys is not None and self.values is not None, "a prefix of a row that was never written"
        return mx.contiguous(self.keys[slot, :, :num_tokens]), mx.contiguous(
            self.values[slot, :, :num_tokens]
        )

    def write_prefix(self, slot: int, keys: mx.array, values: mx.array) -> None:
        """Write the first tokens of a row, (H, T, D)."""
        rows, capacity = round_rows(slot + 1), round_tokens(keys.shape[1])
        self.keys = _grown(self.keys, rows, capacity, keys[None])
        self.values = _grown(self.values, rows, capacity, values[None])
        self.keys[slot, :, : keys.shape[1]] = keys
        self.values[slot, :, : keys.shape[1]] = values

    def make_mask(self, N: int, return_array: bool = False, window_size: int | None = None) -> Any:
        """Return None, "causal" or a bool array (B, 1, T, S).

        Column t of row b sees key s if s <= offset_b + t.
        """
        assert window_size is None, "sliding windows are not served by this cache"
        step, num_kv_tokens = self.view.step, self.view.num_kv_tokens
        is_level = all(offset + N == num_kv_tokens for offset in step.offsets)
        if is_level and not return_array:
            return None if N == 1 else "causal"
        last_seen = mx.array(step.offsets)[:, None] + mx.arange(N)[None]
        return (mx.arange(num_kv_tokens) <= last_seen[..., None])[:, None]

    def _grow(self, keys: mx.array, values: mx.array) -> None:
        rows = round_rows(max(self.view.step.slots) + 1)
        capacity = round_tokens(self.view.num_kv_tokens)
        self.keys = _grown(self.keys, rows, capacity, keys)
        self.values = _grown(self.values, rows, capacity, values)

    def _write(self, buffer: mx.array, new: mx.array) -> mx.array:
        view = self.view
        if view.scatter_slots is not None:
            rows = new[:, :, 0] if view.scatter_rows is None else new[view.scatter_rows, :, 0]
            buffer[view.scatter_slots, :, view.scatter_offsets] = rows
            return buffer
        step = view.step
        for i in view.written_rows:
            slot, start, count = step.slots[i], step.offsets[i], step.counts[i]
            buffer[slot : slot + 1, :, start : start + count] = new[i : i + 1, :, :count]
        return buffer

    def _read(self, buffer: mx.array) -> mx.array:
        view = self.view
        if view.first_slot is not None:
            last = view.first_slot + view.step.num_rows
            return buffer[view.first_slot : last, :, : view.num_kv_tokens]
        return mx.take(buffer[:, :, : view.num_kv_tokens], view.slots, axis=0)


def _grown(old: mx.array | None, rows: int, capacity: int, like: mx.array) -> mx.array:
    """Return a buffer of at least these rows and tokens that begins with `old`; `like` is (.., H, .., D)."""
    _, heads, _, width = like.shape
    if old is None:
        return mx.zeros((rows, heads, capacity, width), dtype=like.dtype)
    rows, capacity = max(rows, old.shape[0]), max(capacity, old.shape[2])
    if old.shape[0] == rows and old.shape[2] == capacity:
        return old
    new = mx.zeros((rows, heads, capacity, width), dtype=old.dtype)
    new[: old.shape[0], :, : old.shape[2]] = old
    return new


class KVTable:
    """The KV of one stage's layers for the rows of one table."""

    def __init__(self, num_layers: int) -> None:
        self.layers = [LayerCache() for _ in range(num_layers)]

    def begin(self, step: StageStep) -> list[LayerCache]:
        """Set every layer's view to `step` and return the layers' caches."""
        view = _make_view(step)
        for layer in self.layers:
            layer.begin(view)
        return self.layers

    def copy_prefix(self, source: KVTable, from_slot: int, to_slot: int, num_tokens: int) -> None:
        """Copy the first tokens of a row of `source`, which may be this table, into a row of this one."""
        parts = [layer.read_prefix(from_slot, num_tokens) for layer in source.layers]
        # Evaluated apart, so that writing into the same table needs no second copy of it.
        mx.eval(parts)
        for layer, (keys, values) in zip(self.layers, parts, strict=True):
            layer.write_prefix(to_slot, keys, values)

    def reset(self) -> None:
        """Drop all rows and their memory."""
        self.layers = [LayerCache() for _ in self.layers]

    @property
    def num_bytes(self) -> int:
        return sum(layer.num_bytes for layer in self.layers)

    @property
    def arrays(self) -> list[mx.array]:
        """Keys and values of all layers, to evaluate with a step's output."""
        return [array for layer in self.layers for array in (layer.keys, layer.values) if array is not None]
