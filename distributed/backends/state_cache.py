"""States of running sequences: one a row and layer, beside the keys and values of layers that attend.

A state (the last inputs of a convolution, a recurrent matrix) stands at exactly the tokens that were stepped.
So no row of a step may be padded, nothing is rolled back, and a row's state is copied whole or not at all.
Nothing is cleared either: a row whose first token is stepped starts from zeros, whatever its slot holds.

    each array of a layer's states: (rows, …), of the shape that the layer's class makes
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from distributed.backends.kv_cache import KVTable, LayerCache, Submit, View
from distributed.backends.window_cache import Ring, WindowCache

if TYPE_CHECKING:
    from distributed.planning.families.hybrids import CacheKind
    from distributed.planning.step import StageStep


class StateCache:
    """One layer's states in a table, as a model layer sees them during a step.

    It follows ArraysCache of mlx_lm 0.32.2 models/cache.py: items are read and replaced by number, and None
    has the layer begin with zeros of its own making.
    """

    lengths = left_padding = None  # no row is padded
    view: View  # set by MixedTable.begin
    starts: mx.array | None  # (B,) rows that start from zeros; None: none does
    is_new: bool  # all rows do

    def __init__(self) -> None:
        self.held: tuple[mx.array | None, ...] = ()
        self.submit: Submit | None = None  # starts what this layer wrote, and with it all layers before

    @property
    def num_bytes(self) -> int:
        return sum(int(array.nbytes) for array in self.held if array is not None)

    def __getitem__(self, index: int) -> mx.array | None:
        """Return the states of the step's rows (B, …); None: all start from zeros."""
        stored = self.held[index] if index < len(self.held) else None
        if stored is None or self.is_new:
            return None
        stored, view = _with_rows(stored, self.view.shape[0]), self.view
        rows = stored[view.rows] if view.rows is not None else mx.take(stored, view.slots, axis=0)
        if self.starts is None:
            return rows
        return mx.where(self.starts.reshape(-1, *[1] * (rows.ndim - 1)), mx.zeros(1, rows.dtype), rows)

    def __setitem__(self, index: int, new: mx.array) -> None:
        """Take the states of the step's rows (B, …); those of holes are not kept."""
        held = [*self.held, *[None] * (index + 1 - len(self.held))]
        held[index] = self._write(held[index], new)
        self.held = tuple(held)

    def _write(self, stored: mx.array | None, new: mx.array) -> mx.array:
        view, num_rows = self.view, self.view.shape[0]
        is_full = len(view.written_rows) == len(new)
        if is_full and view.rows == slice(0, num_rows):
            return mx.contiguous(new)  # which may be a part of something longer
        if stored is None:
            stored = mx.zeros((num_rows, *new.shape[1:]), dtype=new.dtype)
        stored = _with_rows(stored, num_rows)
        if is_full and view.rows is not None:
            stored[view.rows] = new
            return stored
        for i in view.written_rows:
            slot = view.step.slots[i]
            stored[slot : slot + 1] = new[i : i + 1]
        return stored

    def advance(self, num_tokens: int) -> None:
        """The layer has written all of its state."""
        if self.submit is not None and self.view.submits:
            self.submit(*self.held)

    def make_mask(self, N: int, return_array: bool = False, window_size: int | None = None) -> None:
        """Nothing is masked, since no row is padded."""
        assert self.view.step.num_tokens == N, "a mask of another step"

    def read_prefix(self, slot: int, num_tokens: int) -> tuple[mx.array, ...]:
        """Return a copy of a row's states, which stand at `num_tokens`."""
        return tuple(mx.contiguous(array[slot]) for array in self.held if array is not None)

    def write_prefix(self, shape: tuple[int, int], slot: int, *states: mx.array) -> None:
        """Take states of another row for a row of a table of `shape`."""
        empty = [mx.zeros((shape[0], *state.shape), dtype=state.dtype) for state in states]
        held = [_with_rows(array, shape[0]) for array in self.held if array is not None] or empty
        for array, state in zip(held, states, strict=True):
            array[slot] = state
        self.held = tuple(held)

    def resize(self, shape: tuple[int, int], slots: tuple[int, ...]) -> None:
        """Keep the rows `slots`, or all where there are none, in another size."""
        kept = [array for array in self.held if array is not None]
        if slots:
            kept = [mx.take(array, mx.array(slots), axis=0) for array in kept]
        self.held = tuple(_with_rows(array, shape[0]) for array in kept) if shape[0] else ()
        mx.eval(self.held)  # layer by layer, so that no more than one layer is in memory twice

    def clear(self, slot: int, start: int, end: int) -> None:
        """Nothing to do: a row whose numbers are not finite starts anew."""


def _with_rows(old: mx.array, num_rows: int) -> mx.array:
    """Return an array of so many rows with what fits of `old`."""
    if len(old) == num_rows:
        return old
    new = mx.zeros((num_rows, *old.shape[1:]), dtype=old.dtype)
    kept = old[:num_rows]
    new[: len(kept)] = kept
    return new


class MixedTable(KVTable):
    """The KV and states of layers of several kinds, for the rows of one table."""

    def __init__(
        self,
        kinds: Sequence[tuple[CacheKind, ...]],
        submit: Submit | None = None,
        windows: Sequence[int | None] = (),
    ) -> None:
        """Make a table without rows.

        Args:
            kinds: what each layer caches, in the order in which it takes its caches.
            windows: of each layer; none: no layer keeps a window.
        """
        self._by_layer = [
            tuple(_make_cache(kind, window) for kind in each)
            for each, window in zip(kinds, windows or [None] * len(kinds), strict=True)
        ]
        super().__init__(0)
        self.layers = [cache for caches in self._by_layer for cache in caches]
        self.submit_by(submit)

    def begin(self, step: StageStep, *, submits: bool = True) -> list[Any]:
        """Set every cache's view to `step`.

        Returns:
            What each layer takes: its cache, several, or None.
        """
        assert all(count in (0, step.num_tokens) for count in step.counts), "a padded row"
        super().begin(step, submits=submits)
        is_start = [
            not offset and bool(count) for offset, count in zip(step.offsets, step.counts, strict=True)
        ]
        starts = mx.array(is_start) if any(is_start) else None
        rings: dict[int, Ring] = {}
        for cache in self.layers:
            if isinstance(cache, StateCache):
                cache.starts, cache.is_new = starts, all(is_start)
            elif isinstance(cache, WindowCache):
                if cache.size not in rings:
                    rings[cache.size] = Ring(cache.view, cache.size)
                cache.ring = rings[cache.size]
                cache.view = cache.ring.view
        return [caches[0] if len(caches) == 1 else caches or None for caches in self._by_layer]

    @property
    def state_num_bytes(self) -> int:
        """Bytes of states and windows."""
        return sum(cache.num_bytes for cache in self.layers if isinstance(cache, StateCache | WindowCache))

    @property
    def full_state_num_bytes(self) -> int:
        """Bytes of states and windows of long rows."""
        return self.state_num_bytes + sum(
            cache.full_num_bytes - cache.num_bytes for cache in self.layers if isinstance(cache, WindowCache)
        )


def _make_cache(kind: CacheKind, window: int | None) -> Any:
    if kind == "window":
        assert window is not None, "a window of no tokens"
        return WindowCache(window)
    return LayerCache() if kind == "kv" else StateCache()
