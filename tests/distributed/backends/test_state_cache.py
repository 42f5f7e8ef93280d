"""A row's state is that of its own steps, whoever joins or leaves."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest

from distributed.backends.state_cache import MixedTable, StateCache
from distributed.planning.step import Clear, Resize, StageStep
from tests.services.stages import make_step

D = 4


def step_states(table: MixedTable, step: StageStep, begun: list[Any] | None = None) -> list[float]:
    """Add 1 to every row's state; return what the rows had before."""
    layer = (begun or table.begin(step))[0]
    state = layer[1] if layer[1] is not None else mx.zeros((step.num_rows, D))
    layer[0] = state[:, :2]
    layer[1] = state + 1
    layer.advance(step.num_tokens)
    return [float(value) for value in state[:, 0].tolist()]


def test_rows_keep_their_states_and_new_ones_start_from_zeros() -> None:
    """Holes, gathered rows, more rows, a slot that is taken over by a row of offset 0 after NaN."""
    table = MixedTable([("state",)])
    assert step_states(table, make_step({0: (0, 3), 1: (0, 3)})) == [0, 0]
    assert step_states(table, make_step({0: (3, 1), 1: (0, 0)})) == [1, 1]
    assert step_states(table, make_step({0: (4, 1), 1: (3, 1), 2: (0, 1)})) == [2, 1, 0]
    assert step_states(table, make_step({2: (1, 1), 0: (5, 1)})) == [1, 3]
    layer = table.begin(make_step({1: (4, 1)}))[0]
    layer[0], layer[1] = mx.zeros((1, 2)), mx.full((1, D), mx.nan)
    table.clear(Clear(1, 0, 5))
    assert step_states(table, make_step({0: (6, 1), 1: (0, 1), 2: (2, 1)})) == [4, 0, 2]


def test_rows_move_and_are_copied_whole() -> None:
    """A resize keeps the rows that it names; a copy has its source's state, in a row or table that is new."""
    table, other = MixedTable([("state",)]), MixedTable([("state",)])
    step_states(table, make_step({0: (0, 1), 1: (0, 1), 2: (0, 1)}))
    step_states(table, make_step({2: (1, 1)}))
    table.copy_prefix(table, 2, 4, 2)
    table.resize(Resize(0, 2, 64, (4, 0)))
    assert step_states(table, make_step({0: (2, 1), 1: (1, 1)})) == [2, 1]
    other.copy_prefix(table, 0, 3, 3)
    assert step_states(other, make_step({3: (3, 1)})) == [3]
    table.resize(Resize(0, 0, 0))
    assert table.num_bytes == 0


@pytest.mark.parametrize("rows", [{0: (1, 1), 1: (1, 1)}, {0: (1, 1)}, {1: (1, 1), 0: (1, 1)}])
def test_a_step_that_was_built_ahead_is_taken_back(rows: dict[int, tuple[int, int]]) -> None:
    """All rows of the table, some of them, gathered ones: states are those of before."""
    table = MixedTable([("state",)])
    step_states(table, make_step({0: (0, 1), 1: (0, 1)}))
    begun, take_back = table.begin_ahead(make_step(rows))
    step_states(table, make_step(rows), begun)
    take_back()
    assert step_states(table, make_step({0: (1, 1), 1: (1, 1)})) == [1, 1]


def test_padded_rows_are_never_stepped() -> None:
    """A state would go on over the padding."""
    with pytest.raises(AssertionError, match="padded"):
        MixedTable([("state",)]).begin(make_step({0: (0, 3), 1: (0, 2)}))


def test_each_layer_gets_its_caches() -> None:
    """Of one kind, of another, both in order, none; only states are a row's whatever its length."""
    table = MixedTable([("kv",), ("state",), ("state", "kv"), ()])
    keys, state, (inner, attended), nothing = table.begin(make_step({0: (0, 2)}))
    assert nothing is None
    assert isinstance(state, StateCache)
    assert isinstance(inner, StateCache)
    for cache in (keys, attended):
        cache.update_and_fetch(*[mx.zeros((1, 2, 2, D))] * 2)
    state[0] = inner[0] = mx.zeros((1, 8))
    assert table.state_num_bytes == 2 * 8 * 4
    assert table.num_bytes - table.state_num_bytes == 2 * 2 * 2 * 64 * D * 4
