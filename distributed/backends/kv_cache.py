"""KV of running sequences: one table of slots a microbatch, right-padded, one offset a row.

Knows arrays and slots, nothing of requests, rings or budgets: rank 0 decides who has which slot and when a
table is dropped. A prefill writes straight into its row, a sequence that joins or leaves copies nobody else's
KV, and rolling back is not advancing. Full and latent (one head, two widths) caches share this code. A layer
with a sliding window keeps all tokens, too, and reads no more than its rows see.

    keys, values of a layer: (rows, H, capacity, D). Frames say how large a table is (Resize); a step that
    finds no room grows it in the steps of `round_rows`, `round_tokens`

A layer's cache follows the protocol of mlx_lm 0.32.2 models/cache.py, so that its model classes run
unchanged: `offset`, `update_and_fetch`, `make_mask`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import mlx.core as mx

from distributed.planning.kv_sizes import grown
from distributed.planning.step import Clear, Resize, StageStep

Layer = TypeVar("Layer", bound=Any)

# Below this many rows, one slice assignment a row beats one scatter (mlx 0.32.4, CPU).
_MIN_SCATTER_ROWS = 3
# Tokens times layers of a prefix that are in memory twice while they are copied, where one layer has fewer.
_COPIED_TOKENS = 4096
# Every so many layers, from the second on, what is built of a step is started while Python builds the rest.
SUBMITTED_LAYERS = 2

Submit = Callable[..., None]  # takes arrays, as StageRunner.submit


@dataclass(frozen=True)
class View:
    """How one step sees its table: the same for every layer."""

    step: StageStep
    offset: int | mx.array  # per row (B,) int32, or one int for a single row
    rows: slice | None  # which slots the rows are; None: gathered by `slots`
    slots: mx.array  # (B,)
    shape: tuple[int, int]  # rows and tokens that the table has for this step
    num_kv_tokens: int  # S: keys and values are read up to here
    written_rows: tuple[int, ...]  # rows with new tokens; holes are not written
    scatter_rows: mx.array | None  # (W,) of the rows that one scatter of T = 1 writes; None: all
    scatter_slots: mx.array | None  # (W, 1); None: no scatter
    scatter_offsets: mx.array | None  # (W, 1)
    mask: mx.array | None  # (B, 1, T, S), only where rows are uneven
    submits: bool  # whether layers start what has been built
    _heads: dict[int, mx.array] = field(default_factory=dict)
    _window_masks: dict[int, mx.array] = field(default_factory=dict)

    def first_seen(self, window: int) -> int:
        """Return the first token that a row sees through a window: from there on, layers read."""
        step = self.step
        written = [offset for offset, count in zip(step.offsets, step.counts, strict=True) if count]
        return max(0, min(written, default=0) + 1 - window)

    def window_mask(self, window: int) -> mx.array:
        """Return the mask of layers with a window, bool (B, 1, T, S - first_seen)."""
        if window not in self._window_masks:
            self._window_masks[window] = _make_mask(self.step, window, self.first_seen(window))
        return self._window_masks[window]

    def heads(self, num: int) -> mx.array:
        """Return the third index of a scatter, (1, H)."""
        if num not in self._heads:
            self._heads[num] = mx.arange(num, dtype=mx.uint32)[None]
        return self._heads[num]


def _make_view(step: StageStep, shape: tuple[int, int], *, submits: bool) -> View:
    slots, single = step.slots, step.num_rows == 1
    is_range = slots == tuple(range(slots[0], slots[0] + len(slots)))
    written = tuple(i for i, count in enumerate(step.counts) if count)
    scatters = step.num_tokens == 1 and len(written) >= _MIN_SCATTER_ROWS
    return View(
        step=step,
        offset=step.offsets[0] if single else mx.array(step.offsets, dtype=mx.int32),
        rows=slice(slots[0], slots[-1] + 1) if is_range else None,
        slots=_index(slots),
        shape=shape,
        num_kv_tokens=step.num_kv_tokens,
        written_rows=written,
        scatter_rows=_index(written) if scatters and len(written) < len(slots) else None,
        scatter_slots=_index([slots[i] for i in written])[:, None] if scatters else None,
        scatter_offsets=_index([step.offsets[i] for i in written])[:, None] if scatters else None,
        mask=None if _is_level(step) else _make_mask(step),
        submits=submits,
    )


def _index(numbers: Sequence[int]) -> mx.array:
    """Make an index in a type that MLX does not cast anew in each layer (mlx 0.32.4)."""
    return mx.array(numbers, dtype=mx.uint32)


def _is_level(step: StageStep) -> bool:
    return all(offset + step.num_tokens == step.num_kv_tokens for offset in step.offsets)


def _make_mask(step: StageStep, window: int | None = None, first: int = 0) -> mx.array:
    last_seen = (mx.array(step.offsets)[:, None] + mx.arange(step.num_tokens)[None])[..., None]
    keys = mx.arange(first, step.num_kv_tokens)
    if window is None:
        return (keys <= last_seen)[:, None]
    # Padding and holes see a token, too: what sees nothing may be no number.
    last_seen = mx.clip(last_seen, first, step.num_kv_tokens - 1)
    return ((keys <= last_seen) & (keys > last_seen - window))[:, None]


class LayerCache:
    """One layer's keys and values in a table, as a model layer sees them during a step."""

    view: View  # set by KVTable.begin

    def __init__(self) -> None:
        self.keys: mx.array | None = None
        self.values: mx.array | None = None
        self.submit: Submit | None = None  # starts what this layer wrote, and with it all layers before
        self.window: int | None = None  # how many tokens the layer sees, the newest among them; None: all

    @property
    def offset(self) -> int | mx.array:
        """Tokens already cached: an int for one row, else (B,) int32."""
        return self.view.offset

    def __getitem__(self, number: int) -> LayerCache:
        """Return itself: classes with two caches a layer ask one of them for the mask (indexed_attention)."""
        return self

    @property
    def held(self) -> tuple[mx.array | None, ...]:
        """All that it has in memory."""
        return self.keys, self.values

    @held.setter
    def held(self, arrays: tuple[mx.array | None, ...]) -> None:
        self.keys, self.values = arrays

    @property
    def num_bytes(self) -> int:
        return sum(int(array.nbytes) for array in self.held if array is not None)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Write this step's keys and values, (B, H, T, D); return all that the rows see, (B, H, S, D)."""
        self.make_room(self.view.shape, keys, values)
        self.keys = self._write(self.keys, keys)
        self.values = self._write(self.values, values)
        if self.submit is not None and self.view.submits:
            self.submit(self.keys, self.values)
        return self._read(self.keys), self._read(self.values)

    def read_prefix(self, slot: int, num_tokens: int) -> tuple[mx.array, mx.array]:
        """Return a copy of the first tokens of a row, (H, T, D) each."""
        assert self.keys is not None and self.values is not None, "a prefix of a row that was never written"
        return mx.contiguous(self.keys[slot, :, :num_tokens]), mx.contiguous(
            self.values[slot, :, :num_tokens]
        )

    def write_prefix(self, shape: tuple[int, int], slot: int, keys: mx.array, values: mx.array) -> None:
        """Write the first tokens of a row, (H, T, D), of a table of `shape`."""
        self.make_room(shape, keys, values)
        assert self.keys is not None and self.values is not None
        self.keys[slot, :, : keys.shape[1]] = keys
        self.values[slot, :, : keys.shape[1]] = values

    def make_room(self, shape: tuple[int, int], keys: mx.array, values: mx.array) -> None:
        """Have so many rows and tokens, as wide as `keys` and `values` (…, H, …, D)."""
        self.keys = _shaped(self.keys, shape, keys)
        self.values = _shaped(self.values, shape, values)

    def resize(self, shape: tuple[int, int], slots: tuple[int, ...]) -> None:
        """Keep the rows `slots`, or all where there are none, in another size."""
        if self.keys is None or self.values is None:
            return
        if not shape[0]:
            self.keys = self.values = None
            return
        if slots:
            self.keys, self.values = (
                mx.take(array, mx.array(slots), axis=0) for array in (self.keys, self.values)
            )
        self.make_room(shape, self.keys, self.values)
        mx.eval(self.keys, self.values)  # layer by layer, so that no more than one layer is in memory twice

    def clear(self, slot: int, start: int, end: int) -> None:
        """Set a row's tokens to zero."""
        if self.keys is not None and self.values is not None:
            self.keys[slot, :, start:end] = 0
            self.values[slot, :, start:end] = 0

    def make_mask(self, N: int, return_array: bool = False, window_size: int | None = None) -> Any:
        """Return None, "causal" or a bool array (B, 1, T, S).

        Column t of row b sees key s if s <= offset_b + t, and s > offset_b + t - window_size if there is a
        window; the mask then begins where layers with this window read.
        """
        view = self.view
        assert view.step.num_tokens == N, "a mask of another step"
        if window_size is not None and view.num_kv_tokens > window_size:
            sees_all_read = N == 1 and view.mask is None
            return None if sees_all_read and not return_array else view.window_mask(window_size)
        if view.mask is None and return_array and N > 1:
            return _make_mask(view.step)
        return view.mask if view.mask is not None or N == 1 else "causal"

    def _write(self, buffer: mx.array, new: mx.array) -> mx.array:
        view = self.view
        if view.scatter_slots is not None:
            rows = new[:, :, 0] if view.scatter_rows is None else new[view.scatter_rows, :, 0]
            buffer[view.scatter_slots, view.heads(new.shape[1]), view.scatter_offsets] = rows
            return buffer
        step = view.step
        for i in view.written_rows:
            slot, start, count = step.slots[i], step.offsets[i], step.counts[i]
            buffer[slot : slot + 1, :, start : start + count] = new[i : i + 1, :, :count]
        return buffer

    def _read(self, buffer: mx.array) -> mx.array:
        view = self.view
        first = 0 if self.window is None else view.first_seen(self.window)
        if view.rows is not None:
            return buffer[view.rows, :, first : view.num_kv_tokens]
        return mx.take(buffer[:, :, first : view.num_kv_tokens], view.slots, axis=0)


def _shaped(old: mx.array | None, shape: tuple[int, int], like: mx.array) -> mx.array:
    """Return a buffer of these rows and tokens with what fits of `old`; `like` is (.., H, .., D)."""
    rows, capacity = shape
    if old is None:
        return mx.zeros((rows, like.shape[-3], capacity, like.shape[-1]), dtype=like.dtype)
    if (old.shape[0], old.shape[2]) == shape:
        return old
    new = mx.zeros((rows, old.shape[1], capacity, old.shape[3]), dtype=old.dtype)
    kept = old[:rows, :, :capacity]
    new[: kept.shape[0], :, : kept.shape[2]] = kept
    return new


class SlotTable(Generic[Layer]):
    """The KV of one stage's layers for the rows of one table, whatever keeps a layer's."""

    make_layer: Callable[[], Layer]

    def __init__(self, num_layers: int) -> None:
        self.layers = [self.make_layer() for _ in range(num_layers)]
        self.shape = (0, 0)  # rows, tokens

    @property
    def num_bytes(self) -> int:
        return sum(layer.num_bytes for layer in self.layers)

    def resize(self, order: Resize) -> None:
        """Take another size; memory that is not needed any more is free when this returns."""
        self.shape = (order.num_rows, order.num_tokens)
        for layer in self.layers:
            layer.resize(self.shape, order.slots)

    def clear(self, order: Clear) -> None:
        """Set some of a row's tokens to zero."""
        for layer in self.layers:
            layer.clear(order.slot, order.start, order.end)


class KVTable(SlotTable[LayerCache]):
    """The KV of layers that MLX runs."""

    make_layer = LayerCache

    def __init__(
        self, num_layers: int, submit: Submit | None = None, windows: Sequence[int | None] = ()
    ) -> None:
        """Args: windows: of each layer; none: every layer sees all tokens."""
        super().__init__(num_layers)
        for layer, window in zip(self.layers, windows, strict=False):
            layer.window = window
        self.submit_by(submit)

    def submit_by(self, submit: Submit | None) -> None:
        """Have some layers start what has been built so far."""
        for layer in self.layers[1::SUBMITTED_LAYERS]:
            layer.submit = submit

    def begin_ahead(self, step: StageStep) -> tuple[list[LayerCache], Callable[[], None]]:
        """Begin a step that may never come and starts nothing; returns what takes it back, too.

        Until that is dropped, the old keys and values are kept, so that nothing is written in their place: by
        copies of MLX's handles, as writing into an array makes its handle stand for the result.
        """
        shape, before = self.shape, [tuple(map(copy, layer.held)) for layer in self.layers]

        def take_back() -> None:
            self.shape = shape
            for layer, held in zip(self.layers, before, strict=True):
                layer.held = held

        return self.begin(step, submits=False), take_back

    def begin(self, step: StageStep, *, submits: bool = True) -> list[LayerCache]:
        """Set every layer's view to `step` and return the layers' caches."""
        self.shape = grown(self.shape, max(step.slots) + 1, step.num_kv_tokens)
        view = _make_view(step, self.shape, submits=submits)
        for layer in self.layers:
            layer.view = view
        return self.layers

    def copy_prefix(self, source: KVTable, from_slot: int, to_slot: int, num_tokens: int) -> None:
        """Copy the first tokens of a row of `source`, which may be this table, into a row of this one."""
        self.shape = grown(self.shape, to_slot + 1, num_tokens)
        count = max(1, _COPIED_TOKENS // num_tokens)
        for first in range(0, len(self.layers), count):
            layers, others = (table.layers[first : first + count] for table in (self, source))
            parts = [layer.read_prefix(from_slot, num_tokens) for layer in others]
            # Evaluated apart, so that writing into the same table needs no second copy of it.
            mx.eval(parts)
            for layer, part in zip(layers, parts, strict=True):
                layer.write_prefix(self.shape, to_slot, *part)
            mx.eval([layer.held for layer in layers])
