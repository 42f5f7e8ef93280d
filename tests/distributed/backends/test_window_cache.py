"""A row sees the last tokens of its own, whoever joins or leaves, and nothing beyond them."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from distributed.backends.state_cache import MixedTable
from distributed.backends.window_cache import WindowCache
from distributed.planning.kv_sizes import round_tokens
from distributed.planning.step import Resize
from tests.services.stages import make_step

WINDOW, H, D = 5, 2, 3


class Rows:
    """A table of one layer with a window, and all tokens of each of its rows beside it."""

    def __init__(self, window: int = WINDOW) -> None:
        self.window = window
        self.table = MixedTable([("window",)], windows=[window])
        self.tokens: dict[int, list[np.ndarray[Any, Any]]] = {}
        self._numbers = np.random.default_rng(7)

    def step(self, counts: Mapping[int, int], begun: Sequence[Any] | None = None) -> None:
        """Step so many new tokens of these slots; compare what they see with what they should."""
        step = make_step({slot: (len(self.tokens.get(slot, ())), count) for slot, count in counts.items()})
        cache = (begun or self.table.begin(step))[0]
        assert isinstance(cache, WindowCache)
        new = self._numbers.normal(size=(step.num_rows, step.num_tokens, H, D)).astype(np.float32)
        array = mx.array(new.swapaxes(1, 2))
        mask = cache.make_mask(step.num_tokens, window_size=self.window)
        keys, values = cache.update_and_fetch(array, 2 * array)
        queries = mx.array(self._numbers.normal(size=array.shape).astype(np.float32))
        got = np.array(mx.fast.scaled_dot_product_attention(queries, keys, values, scale=1.0, mask=mask))
        for row, (slot, count) in enumerate(counts.items()):
            if count:
                self.tokens.setdefault(slot, []).extend(new[row])
                wanted = attend(np.array(queries[row]), np.array(self.tokens[slot]), self.window)
                np.testing.assert_allclose(got[row], wanted, rtol=0, atol=1e-5)

    def copy(self, source: int, target: int) -> None:
        """Copy a whole row."""
        self.table.copy_prefix(self.table, source, target, len(self.tokens[source]))
        self.tokens[target] = list(self.tokens[source])


def attend(queries: np.ndarray[Any, Any], tokens: np.ndarray[Any, Any], window: int) -> np.ndarray[Any, Any]:
    """Attention (H, T, D) of the last tokens (N, H, D) of a row to those in their windows."""
    out = np.zeros_like(queries)
    num = queries.shape[1]
    for token in range(num):
        end = len(tokens) - num + token + 1
        seen = tokens[max(0, end - window) : end].swapaxes(0, 1)
        weights = np.exp(np.einsum("hd,hsd->hs", queries[:, token], seen))
        out[:, token] = np.einsum("hs,hsd->hd", weights / weights.sum(axis=-1, keepdims=True), 2 * seen)
    return out


@pytest.mark.parametrize("window", [WINDOW, 100])
@pytest.mark.parametrize("seed", range(6))
def test_any_steps_see_the_window_of_each_row(seed: int, window: int) -> None:
    """Chunks and tokens of some rows, holes, gathered rows, rows that start anew, copies, resizes.

    A table has fewer tokens than a window of 100 at first.
    """
    choose, rows = random.Random(seed), Rows(window)
    for _ in range(40):
        slots = choose.sample(range(6), choose.randint(1, 6))
        if choose.random() < 0.5:
            slots = list(range(min(slots), max(slots) + 1))
        count = choose.choice([1, 1, 1, 2, 4, 5, 6, 11, 40])
        counts = {slot: count if choose.random() < 0.8 else 0 for slot in slots}
        if any(counts.values()):
            rows.step(counts)
        event = choose.random()
        known = [slot for slot in rows.tokens if rows.tokens[slot]]
        if event < 0.2 and known:
            rows.tokens[choose.choice(known)] = []
        elif event < 0.4 and known:
            rows.copy(choose.choice(known), choose.randrange(6))
        elif event < 0.5 and len(known) > 1:
            kept = tuple(choose.sample(known, 2))
            most = max(len(rows.tokens[slot]) for slot in kept)
            rows.table.resize(Resize(0, 2, round_tokens(most), kept))
            rows.tokens = {row: rows.tokens[slot] for row, slot in enumerate(kept)}


def spoil(rows: Rows, *slots: int) -> None:
    """Let rows hold no numbers."""
    for array in rows.table.layers[0].held:
        assert array is not None
        for slot in slots:
            array[slot] = mx.nan


@pytest.mark.parametrize("count", [1, 3, 9])
def test_a_slot_that_held_no_numbers_is_taken_over(count: int) -> None:
    """What a mask hides must be finite all the same: of a new row, and of a short one that was copied."""
    rows = Rows()
    rows.step({0: 2, 1: 2})
    rows.step({2: 9})
    rows.copy(2, 3)
    spoil(rows, 0, 1)
    rows.tokens[0] = []
    rows.step({0: count, 2: count})
    rows.copy(0, 1)
    rows.step({0: 1, 1: 1, 2: 1, 3: 1})
    rows.step({0: 2, 1: 2, 2: 2, 3: 2})


def test_memory_is_that_of_the_window() -> None:
    """However long the rows; none without rows."""
    rows = Rows()
    for count in (11, 1, 700):
        rows.step({0: count, 1: count})
        assert rows.table.state_num_bytes == rows.table.num_bytes == 2 * 2 * WINDOW * H * D * 4
    rows.table.resize(Resize(0, 0, 0))
    assert rows.table.num_bytes == 0
    rows = Rows(100)
    for count, columns in ((11, 64), (54, 100), (700, 100)):
        rows.step({0: count})
        assert rows.table.state_num_bytes == 2 * columns * H * D * 4
        assert rows.table.full_state_num_bytes == 2 * 100 * H * D * 4


@pytest.mark.parametrize("counts", [{0: 1, 1: 1}, {0: 1}, {1: 1, 0: 1}, {0: 1, 1: 1, 2: 1}])
def test_a_step_that_was_built_ahead_is_taken_back(counts: dict[int, int]) -> None:
    """Rows see what they saw before."""
    rows = Rows()
    rows.step({0: 4, 1: 4, 2: 4})
    rows.step({2: 3})
    before = {slot: list(tokens) for slot, tokens in rows.tokens.items()}
    step = make_step({slot: (len(before[slot]), 1) for slot in counts})
    begun, take_back = rows.table.begin_ahead(step)
    rows.step(counts, begun)
    take_back()
    rows.tokens = before
    rows.step({0: 1, 1: 1, 2: 1})
