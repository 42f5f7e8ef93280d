"""Keys and values of a layer with a window: of each row no more than its last tokens, in a ring.

A ring stands at exactly the tokens that were stepped, as a state does (state_cache.py): no row of a step is
padded, nothing is rolled back, and a row is copied whole or not at all. A row whose first token is stepped
starts from zeros, so nothing is cleared either.

    keys, values of a layer: (rows, H, window or less, D); token p lies in column p modulo window

Positions are in the keys already, so attention does not care for the order of columns. A step of one token a
row writes its column and reads the ring in place; a chunk reads the ring and its own tokens behind it.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any

import mlx.core as mx
import numpy as np

from distributed.backends.kv_cache import LayerCache, View
from distributed.planning.step import StageStep


class Ring:
    """How one step sees rows of a window: the same for every layer that has it."""

    def __init__(self, view: View, window: int) -> None:
        self.step, self.window = view.step, window
        offsets = view.scatter_offsets
        self.view = view if offsets is None else replace(view, scatter_offsets=offsets % window)
        written = [self.step.offsets[row] for row in view.written_rows]
        # Columns that a chunk reads, and that a step of one token reads after it has written.
        self.num_old = min(window, max(written, default=0))
        self.num_read = min(window, view.num_kv_tokens)
        self.starts = [self.step.slots[row] for row in view.written_rows if not self.step.offsets[row]]
        self.is_new = len(self.starts) == len(written)
        self.is_full = all(offset + 1 >= self.num_read for offset in written)
        self.writes = [part for row in view.written_rows for part in _parts(self.step, row, window)]

    @cached_property
    def mask(self) -> mx.array:
        """Bool (B, 1, T, columns that are read and new tokens)."""
        offsets, num = np.array(self.step.offsets)[:, None], self.step.num_tokens
        if num == 1:
            return mx.array(np.arange(self.num_read) <= offsets)[:, None, None]
        columns, tokens = np.arange(self.num_old), np.arange(num)
        held = offsets - 1 - (offsets - 1 - columns) % self.window
        first_seen = np.maximum(offsets + tokens - self.window + 1, 0)
        old = mx.array(held)[:, None] >= mx.array(first_seen)[..., None]
        column, token = mx.array(tokens), mx.array(tokens)[:, None]
        new = (column <= token) & (column > token - self.window)
        return mx.concatenate([old, mx.broadcast_to(new, (*old.shape[:2], num))], axis=-1)[:, None]


def _parts(step: StageStep, row: int, window: int) -> list[tuple[int, int, int, int, int]]:
    """Return what of a row is written where, (row, slot, first column, first token, tokens)."""
    num = min(step.num_tokens, window)
    first, slot = step.num_tokens - num, step.slots[row]
    column = (step.offsets[row] + first) % window
    num_straight = min(num, window - column)
    parts = [(row, slot, column, first, num_straight)]
    if num_straight < num:
        parts.append((row, slot, 0, first + num_straight, num - num_straight))
    return parts


class WindowCache(LayerCache):
    """One layer's last keys and values in a table, as a model layer sees them during a step."""

    ring: Ring  # set by MixedTable.begin

    def __init__(self, size: int) -> None:
        """Args: size: how many tokens the layer sees, the newest among them."""
        super().__init__()
        self.size = size

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Write this step's keys and values, (B, H, T, D); return what the mask is for."""
        self.make_room(self.view.shape, keys, values)
        assert self.keys is not None and self.values is not None
        for slot in self.ring.starts:
            self.keys[slot] = 0
            self.values[slot] = 0
        seen = self._joined(self.keys, keys), self._joined(self.values, values)
        self.keys, self.values = self._write(self.keys, keys), self._write(self.values, values)
        if self.submit is not None and self.view.submits:
            self.submit(self.keys, self.values)
        return (self._read(self.keys), self._read(self.values)) if keys.shape[2] == 1 else seen

    def make_mask(self, N: int, return_array: bool = False, window_size: int | None = None) -> Any:
        """Return None, "causal" or a bool array (B, 1, T, S) for the columns that a step reads."""
        ring = self.ring
        assert ring.step.num_tokens == N, "a mask of another step"
        if N == 1:
            return None if ring.is_full and not return_array else ring.mask
        return "causal" if ring.is_new and ring.window >= N and not return_array else ring.mask

    def write_prefix(self, shape: tuple[int, int], slot: int, keys: mx.array, values: mx.array) -> None:
        """Take the tokens of another row for a row of a table of `shape`."""
        self.make_room(shape, keys, values)
        assert self.keys is not None and self.values is not None
        self.keys[slot] = 0
        self.values[slot] = 0
        super().write_prefix(shape, slot, keys, values)

    def make_room(self, shape: tuple[int, int], keys: mx.array, values: mx.array) -> None:
        """Have so many rows, as wide as `keys` and `values` (…, H, …, D).

        In a table of fewer tokens than the window no row has come to its end, so the rest is left out.
        """
        super().make_room((shape[0], min(self.size, shape[1])), keys, values)

    def clear(self, slot: int, start: int, end: int) -> None:
        """Nothing to do: a row whose numbers are not finite starts anew."""

    @property
    def full_num_bytes(self) -> int:
        """Bytes of all rows once the table has as many tokens as the window."""
        return 0 if self.keys is None else self.num_bytes * self.size // self.keys.shape[2]

    def _joined(self, buffer: mx.array, new: mx.array) -> mx.array:
        """Return what a chunk sees: the ring, and the chunk's own tokens behind it."""
        num_old = self.ring.num_old
        if not num_old or new.shape[2] == 1:
            return new
        return mx.concatenate([self._read(buffer)[:, :, :num_old], new], axis=2)

    def _write(self, buffer: mx.array, new: mx.array) -> mx.array:
        if self.view.scatter_slots is not None:
            return super()._write(buffer, new)
        for row, slot, column, first, num in self.ring.writes:
            part = new[row : row + 1, :, first : first + num]
            buffer[slot : slot + 1, :, column : column + num] = part
        return buffer
