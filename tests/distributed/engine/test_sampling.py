"""Draws follow the filtered distribution exactly, and belong to their key alone."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from distributed.backends.mlx import greedy_on_gpu
from distributed.engine.draw import DrawnToken, draw, order_falling
from distributed.engine.row_sampling import RowSampling, uniform
from distributed.engine.sampling import Draws


def make_row(**changes: float) -> RowSampling:
    values = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "seed": 1, "choice": 0, "index": 0}
    return RowSampling(**{**values, **changes})  # type: ignore[arg-type]


def expected(logits: NDArray[np.float32], row: RowSampling) -> NDArray[np.float64]:
    """The filtered distribution by sorting everything in float64."""
    weights = np.exp((logits.astype(np.float64) - logits.max()) / row.temperature)
    weights[weights < row.min_p] = 0
    order = np.argsort(-weights, kind="stable")
    kept = np.zeros_like(weights)
    if row.top_k:
        order = order[: row.top_k]
    sums = np.cumsum(weights[order])
    num_kept = int(np.searchsorted(sums, row.top_p * sums[-1])) + 1 if row.top_p < 1 else len(order)
    kept[order[:num_kept]] = weights[order[:num_kept]]
    return np.asarray(kept / kept.sum())


@pytest.mark.parametrize(
    "filters",
    [
        {},
        {"top_p": 0.9},
        {"top_k": 3},
        {"min_p": 0.05},
        {"top_k": 20, "top_p": 0.5},
        {"min_p": 0.01, "top_p": 0.8, "top_k": 30},
        {"temperature": 0.3},
        {"temperature": 8.0, "top_p": 0.999},
    ],
)
def test_draws_follow_the_filtered_distribution(filters: dict[str, float]) -> None:
    """Over many keys the frequencies are those of a full sort; what a filter leaves out is never drawn."""
    logits = (np.random.default_rng(3).standard_normal(500) * 2).astype(np.float32)
    wanted = expected(logits, make_row(**filters))
    counts = np.zeros(500)
    num_draws = 4000
    for index in range(num_draws):
        counts[draw(logits, int(logits.argmax()), make_row(index=index, **filters))] += 1
    assert counts[wanted == 0].sum() == 0
    assert np.abs(counts / num_draws - wanted).max() < 0.03


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**40),
    top_p=st.floats(0.01, 1.0),
    top_k=st.integers(0, 60),
    temperature=st.floats(0.05, 50.0),
)
def test_any_filter_finds_a_token(seed: int, top_p: float, top_k: int, temperature: float) -> None:
    """No combination runs out of candidates."""
    logits = np.random.default_rng(seed % 7).standard_normal(64).astype(np.float32)
    row = make_row(seed=seed, top_p=top_p, top_k=top_k, temperature=temperature)
    token = draw(logits, int(logits.argmax()), row)
    assert expected(logits, row)[token] > 0


@pytest.mark.parametrize("filters", [{}, {"top_p": 0.9}, {"top_k": 3}, {"min_p": 0.5}])
def test_the_smallest_temperatures_take_the_best_token(filters: dict[str, float]) -> None:
    """Down to the smallest number there is, which has no finite inverse."""
    logits = np.random.default_rng(4).standard_normal(500).astype(np.float32)
    for temperature in (1e-5, 1e-30, 1e-39, 5e-324):
        best = int(logits.argmax())
        assert draw(logits, best, make_row(temperature=temperature, **filters)) == best


@pytest.mark.parametrize("num", [0, 1, 100, 5000])
def test_many_weights_are_ordered_as_few(num: int) -> None:
    """As a stable sort would, with equal weights, zeros and the smallest numbers there are."""
    source = np.random.default_rng(num)
    weights = np.exp(source.standard_normal(num).astype(np.float32) * 20)
    weights[source.random(num) < 0.3] = np.float32(0.5)
    weights[source.random(num) < 0.1] = 0
    weights[source.random(num) < 0.1] = np.finfo(np.float32).smallest_subnormal
    assert order_falling(weights).tolist() == np.argsort(-weights, kind="stable").tolist()


def test_rows_are_drawn_each_by_its_own_rule() -> None:
    """Greedy and sampled rows in one batch do not disturb each other."""
    logits = mx.random.normal((4, 100), key=mx.random.key(0))
    rows = [make_row(temperature=0.0), make_row(seed=9), make_row(top_k=1), make_row(seed=9, index=5)]
    together = Draws(logits, rows).finish()
    alone = [Draws(logits[i : i + 1], [row]).finish()[0] for i, row in enumerate(rows)]
    assert together == alone
    assert together[0] == DrawnToken(int(mx.argmax(logits[0]).item()))
    assert together[2] == DrawnToken(int(mx.argmax(logits[2]).item()))


def test_the_key_is_spread_and_stable() -> None:
    """The numbers fill [0, 1) evenly, differ by each part of the key, and never change between releases."""
    numbers = np.array([uniform(1, 0, index) for index in range(4000)])
    assert 0 <= numbers.min() < numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 0.02
    assert len({uniform(1, 0, 0), uniform(2, 0, 0), uniform(1, 1, 0), uniform(1, 0, 1)}) == 4
    assert uniform(42, 0, 7) == uniform(42, 0, 7)


@pytest.mark.parametrize("rule", [{"temperature": 0.0}, {}, {"top_p": 0.9}, {"min_p": 0.1}])
def test_nothing_is_drawn_from_numbers_that_are_not_finite(rule: dict[str, float]) -> None:
    """NaN or infinity anywhere in a row, or nothing but -infinity; tokens that are ruled out are no fault."""
    logits = np.random.default_rng(1).standard_normal((5, 64)).astype(np.float32)
    logits[1, 7], logits[2, 9], logits[3, :], logits[4, 1:] = np.nan, np.inf, -np.inf, -np.inf
    plain = [token if token >= 0 else None for token in greedy_on_gpu(mx.array(logits)).tolist()]
    for drawn in (Draws(mx.array(logits), [make_row(**rule)] * 5).finish(), plain):
        assert [token is None for token in drawn] == [False, True, True, True, False]


def test_greedy_ids_on_a_gpu_are_those_of_the_cpu() -> None:
    """In every type that logits come in."""
    logits = mx.random.normal((6, 500), key=mx.random.key(2))
    for dtype in (mx.float32, mx.float16, mx.bfloat16):
        rounded = logits.astype(dtype)
        rows = [make_row(temperature=0.0)] * 6
        assert Draws(rounded, rows, greedy_on_gpu).finish() == Draws(rounded, rows).finish()
