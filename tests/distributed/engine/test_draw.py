"""Penalties, bias, masks and logprobs of one row are those of plain formulas."""

from __future__ import annotations

import math
from itertools import accumulate
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from distributed.backends.mlx import greedy_on_gpu
from distributed.engine.draw import DrawnToken, draw_token, edit, likeliest, read_logprobs
from distributed.engine.row_sampling import RowSampling, TokenCounts, mask_of
from distributed.engine.sampling import Draws

V = 40
TOKENS = st.lists(st.integers(0, V - 1), max_size=30)
PENALTIES = st.sampled_from([-2.0, -0.5, 0.0, 0.3, 2.0])


def make_row(**changes: Any) -> RowSampling:
    values = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "seed": 1, "choice": 0, "index": 0}
    return RowSampling(**{**values, **changes})


def make_logits(seed: int, num: int = V) -> NDArray[np.float32]:
    return (np.random.default_rng(seed).standard_normal(num) * 4).astype(np.float32)


def make_mask(allowed: set[int], num: int = V) -> NDArray[np.int32]:
    """One bit a token, as llguidance writes them."""
    words = np.zeros((num + 31) // 32, np.uint32)
    for token in allowed:
        words[token // 32] |= np.uint32(1) << np.uint32(token % 32)
    return words.view(np.int32)


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 9),
    prompt=TOKENS,
    answer=TOKENS,
    frequency=PENALTIES,
    presence=PENALTIES,
    repetition=st.sampled_from([0.5, 1.0, 1.3, 2.0]),
    bias=st.dictionaries(st.integers(0, V - 1), st.floats(-100, 100), max_size=4),
    allowed=st.none() | st.sets(st.integers(0, V - 1), min_size=1),
)
def test_logits_are_edited_as_the_formulas_say(
    seed: int,
    prompt: list[int],
    answer: list[int],
    frequency: float,
    presence: float,
    repetition: float,
    bias: dict[int, float],
    allowed: set[int] | None,
) -> None:
    """Repetition over prompt and answer, frequency and presence over the answer, then bias, then mask."""
    logits = make_logits(seed)
    row = make_row(
        frequency_penalty=frequency,
        presence_penalty=presence,
        repetition_penalty=repetition,
        counts=TokenCounts.of([*prompt, *answer], len(prompt)),
        logit_bias=bias,
        mask=None if allowed is None else make_mask(allowed),
    )
    wanted = logits.astype(np.float64)
    for token in range(V):
        if token in prompt or token in answer:
            wanted[token] *= 1 / repetition if wanted[token] > 0 else repetition
        wanted[token] -= frequency * answer.count(token) + presence * (token in answer)
        wanted[token] += bias.get(token, 0)
        if allowed is not None and token not in allowed:
            wanted[token] = -math.inf
    before = logits.copy()
    np.testing.assert_allclose(edit(logits, row), wanted, rtol=1e-5, atol=1e-4)
    assert draw_token(logits, int(logits.argmax()), row) == DrawnToken(int(edit(logits, row).argmax()))
    assert (logits == before).all()


@settings(max_examples=100, deadline=None)
@given(
    levels=st.lists(st.sampled_from([0.0, 1.0, 2.0, -np.inf]), min_size=100, max_size=100),
    num_words=st.integers(1, 4),
    data=st.data(),
)
def test_a_greedy_draw_by_a_mask_needs_no_edited_copy_where_it_allows_the_likeliest(
    levels: list[float], num_words: int, data: st.DataObject
) -> None:
    """The token is that of edited logits, also among equal ones and beyond the mask's last word."""
    logits = np.array(levels, np.float32)
    allowed = data.draw(st.sets(st.integers(0, min(100, 32 * num_words) - 1)))
    best, row = int(logits.argmax()), make_row(mask=make_mask(allowed, 32 * num_words))
    assert row.is_settled_by(best) == (best in allowed)
    edited = edit(logits, row)
    is_drawn = bool(np.isfinite(logits[best]) and np.isfinite(edited).any())
    assert draw_token(logits, best, row) == (DrawnToken(int(edited.argmax())) if is_drawn else None)
    for change in ({"logit_bias": {0: 1.0}}, {"counts": TokenCounts.of([1], 0)}, {"temperature": 1.0}):
        assert not make_row(mask=row.mask, **change).is_settled_by(best)
    assert not make_row().is_settled_by(best)


@settings(max_examples=100, deadline=None)
@given(prompt=TOKENS, answer=TOKENS)
def test_counts_grow_token_by_token(prompt: list[int], answer: list[int]) -> None:
    """They are those of a fresh count, and earlier counts stay as they were, so drafts leave no trace."""
    every = list(accumulate(answer, TokenCounts.plus, initial=TokenCounts.of(prompt, len(prompt))))
    for num, counts in enumerate(every):
        fresh = TokenCounts.of([*prompt, *answer[:num]], len(prompt))
        grown = dict(zip(counts.ids.tolist(), counts.nums.tolist(), strict=True))
        assert grown == dict(zip(fresh.ids.tolist(), fresh.nums.tolist(), strict=True))


def test_a_repetition_penalty_of_0_takes_a_seen_token_and_overflows_nothing() -> None:
    """Also beside logits of 0 and -infinity."""
    logits = np.array([3.0, 0.0, -np.inf, -1.0, 9.0], np.float32)
    row = make_row(repetition_penalty=0.0, counts=TokenCounts.of([0, 1, 2, 3], 4))
    assert draw_token(logits, 4, row) == DrawnToken(0)


@pytest.mark.parametrize("rule", [{}, {"temperature": 1.0}, {"temperature": 2.0, "top_k": 9, "min_p": 0.001}])
def test_only_tokens_of_the_mask_are_drawn(rule: dict[str, float]) -> None:
    """Greedy and drawn; tokens beyond the mask's last word are not allowed; an empty mask leaves nothing."""
    logits = make_logits(2, 100)
    best = int(logits.argmax())
    for index in range(50):
        for allowed in ({3}, {31, 32, 63}, {0, 40, 5, 33}):
            token = draw_token(logits, best, make_row(mask=make_mask(allowed, 64), index=index, **rule))
            assert token is not None
            assert token.id in allowed
    assert draw_token(logits, best, make_row(mask=make_mask(set(), 64), **rule)) is None
    for token_id in (0, 31, 32, 99):
        assert draw_token(logits, best, make_row(mask=mask_of(token_id), **rule)) == DrawnToken(token_id)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 9), num=st.integers(0, 20), token=st.integers(0, V - 1), ruled_out=st.booleans())
def test_logprobs_are_those_of_the_raw_logits(seed: int, num: int, token: int, ruled_out: bool) -> None:
    """The drawn token's and the likeliest, best first; bias, mask and temperature do not matter."""
    logits = make_logits(seed)
    if ruled_out:
        logits[::3] = -np.inf
    exact = logits.astype(np.float64) - logits.max()
    exact -= np.log(np.exp(exact).sum())
    rule = {"temperature": 0.5, "logit_bias": {token: 100.0, (token + 1) % V: -1.0}, "mask": mask_of(token)}
    got = draw_token(logits, int(logits.argmax()), make_row(logprobs=num, **rule))
    if ruled_out and token % 3 == 0:
        assert got is None
        got = read_logprobs(logits, token, num)
        assert got.logprob is None
    assert got is not None
    assert got.id == token
    order = np.argsort(-exact, kind="stable")[:num].tolist()
    assert [each for each, _ in got.alternatives] == order
    for each, value in [(token, got.logprob), *got.alternatives]:
        assert value == (None if exact[each] == -np.inf else pytest.approx(exact[each], abs=1e-5))


def test_equal_logits_are_listed_by_id() -> None:
    """So that the same numbers give the same list everywhere."""
    logits = np.zeros(1000, np.float32)
    logits[[900, 7, 300]] = 1
    assert likeliest(logits, 5)[:3] == [7, 300, 900]


def test_plain_rows_beside_others_stay_on_the_gpu() -> None:
    """Only the other rows' logits leave it, and every row gets what it gets alone."""
    logits = mx.random.normal((6, 100), key=mx.random.key(4))
    counts = TokenCounts.of([1, 2, 3], 1)
    rows = [
        make_row(),
        make_row(logprobs=2),
        make_row(counts=counts, presence_penalty=1.0),
        make_row(temperature=1.0),
        make_row(),
        make_row(mask=mask_of(5)),
    ]
    seen: list[mx.array] = []

    def greedy(plain: mx.array) -> mx.array:
        seen.append(plain)
        return greedy_on_gpu(plain)

    together = Draws(logits, rows, greedy).finish()
    assert [plain.tolist() for plain in seen] == [[logits[0].tolist(), logits[4].tolist()]]
    assert together == [Draws(logits[i : i + 1], [row]).finish()[0] for i, row in enumerate(rows)]
