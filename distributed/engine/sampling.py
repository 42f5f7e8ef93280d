"""Sampling: from logits to token ids, each row with its request's parameters and key. Runs on rank 0 only.

A draw is a pure function of (seed, choice, index) and its distribution: tokens are sorted by falling
probability, and one uniform number made from that key selects the token at which their running sum passes it.
So a seed gives the same text whatever else runs, up to float rounding: another batch size or layer split may
round a probability differently, which matters when the uniform number falls within that difference.

Order of the filters: temperature, min_p, top_k, top_p, each over the tokens that the one before leaves. To
sort a whole vocabulary costs more than a small model. So only candidates above a falling cutoff are sorted,
until they cover the filters and the draw; the last cutoff takes every token, so the result is exact."""

from __future__ import annotations

from collections.abc import Sequence as Items

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from distributed.backends.backend import Greedy
from distributed.engine.row_sampling import RowSampling, uniform

Float32Array = NDArray[np.float32]

# Probabilities relative to the most likely token above which tokens become candidates, tried in turn.
_CUTOFFS = (1e-2, 1e-4, 1e-7, 0.0)
# From this many candidates on, sorting integer keys is faster (numpy 2.4 with AVX2).
_MANY = 2000
_SURELY_LESS = 0.999  # covers the rounding of float32 sums in any order
_MAX_FLOAT = float(np.finfo(np.float32).max)


def sample(logits: mx.array, rows: Items[RowSampling], greedy: Greedy | None = None) -> list[int | None]:
    """Draw one token id a row.

    Args:
        logits: (B, V) of any float type; evaluated here, together with the greedy rows' argmax.
        greedy: a faster way to the most likely ids, where nothing else is drawn; see StageRunner.

    Returns:
        The ids; None for a row whose logits hold NaN or infinity, or nothing but -infinity.
    """
    if greedy is not None and all(row.is_greedy and row.mask is None for row in rows):
        return greedy(logits)
    logits = logits.astype(mx.float32)
    mx.eval(logits)
    values = np.asarray(logits)
    best = values.argmax(axis=-1)  # the first NaN, if there is one; faster than MLX's CPU build
    is_finite = np.isfinite(values[np.arange(len(values)), best]).tolist()
    return [
        None if not is_finite[i] else _draw_row(values[i], int(best[i]), row) for i, row in enumerate(rows)
    ]


def _draw_row(logits: Float32Array, best: int, row: RowSampling) -> int | None:
    """Draw a token id of one row, whose likeliest is `best`; None where the grammar allows none."""
    if row.mask is not None:
        bits = np.unpackbits(row.mask.view(np.uint8), count=len(logits), bitorder="little")
        logits = np.where(bits, logits, np.float32(-np.inf))
        best = int(logits.argmax())
        if not np.isfinite(logits[best]):
            return None
    return best if row.is_greedy else draw(logits, best, row)


def draw(logits: Float32Array, best: int, row: RowSampling) -> int:
    """Draw one token id from one row's logits (V,) float32 whose argmax is `best`."""
    weights = logits - logits[best]
    with np.errstate(
        over="ignore"
    ):  # -infinity is a correct weight; an infinite factor would turn the best token's 0 into NaN
        weights *= np.float32(min(1.0 / row.temperature, _MAX_FLOAT))
    np.exp(weights, out=weights)
    if row.min_p:
        token = _draw_above(weights, row.min_p, None, row)
    else:
        total = None if row.top_k else float(weights.sum())
        tries = (_draw_above(weights, cutoff, total if cutoff else None, row) for cutoff in _cutoffs(row))
        token = next(token for token in tries if token is not None)
    assert token is not None
    return token


def _cutoffs(row: RowSampling) -> tuple[float, ...]:
    return _CUTOFFS if row.top_p < 1.0 or row.top_k else _CUTOFFS[1:]


def _draw_above(weights: Float32Array, cutoff: float, total: float | None, row: RowSampling) -> int | None:
    """Draw among the tokens whose weight is at least `cutoff`; None if they do not cover the draw.

    Args:
        weights: (V,) float32, probabilities relative to the most likely token's.
        total: the sum of all weights; None if nothing below the cutoff counts, or if top_k makes it needless.
    """
    candidates = np.flatnonzero(weights >= cutoff)
    if total is not None:
        wanted = row.top_p if row.top_p < 1.0 else uniform(row.seed, row.choice, row.index)
        if weights[candidates].sum() < _SURELY_LESS * wanted * total:
            return None  # do not sort too few candidates
    candidates = candidates[order_falling(weights[candidates])]
    sums = np.cumsum(weights[candidates], dtype=np.float64)
    num_kept = len(candidates)
    if row.top_k:
        if num_kept < row.top_k and cutoff and not row.min_p:
            return None
        num_kept = min(num_kept, row.top_k)
        total = None
    mass = float(sums[num_kept - 1]) if total is None else total
    if row.top_p < 1.0:
        if sums[num_kept - 1] < row.top_p * mass:
            return None
        num_kept = int(np.searchsorted(sums[:num_kept], row.top_p * mass)) + 1
        mass = float(sums[num_kept - 1])
    mark = uniform(row.seed, row.choice, row.index) * mass
    return _pick(candidates[:num_kept], sums[:num_kept], mark) if mark < sums[num_kept - 1] else None


def order_falling(weights: Float32Array) -> NDArray[np.intp]:
    """Return the indices of weights (N,), none negative, by falling weight; equal ones keep their order."""
    if len(weights) < _MANY:
        return np.argsort(-weights, kind="stable")
    # Non-negative floats sort like their bits; the index in the low bits makes each key unique.
    keys = (~weights.view(np.uint32)).astype(np.uint64) << np.uint64(32)
    keys |= np.arange(len(weights), dtype=np.uint64)
    keys.sort()
    return (keys & np.uint64(0xFFFFFFFF)).astype(np.intp)


def _pick(candidates: NDArray[np.intp], sums: NDArray[np.float64], mark: float) -> int:
    return int(candidates[int(np.searchsorted(sums, mark, side="right"))])
