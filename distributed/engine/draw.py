"""One draw: from one row's logits to a token id, with its request's parameters and key. NumPy, no MLX.

A draw is a pure function of (seed, choice, index), the tokens so far and their logits: tokens are sorted by
falling probability, and one uniform number made from that key selects the token at which their running sum
passes it. So a seed gives the same text whatever else runs, up to float rounding: another batch size or layer
split may round a probability differently, which matters when the uniform number falls within that difference.

Order: the logprobs of the raw logits; repetition, frequency and presence penalty, bias and mask; temperature,
min_p, top_k, top_p, each over the tokens that the one before leaves. To sort a whole vocabulary costs more
than a small model. So only candidates above a falling cutoff are sorted, until they cover the filters and the
draw; the last cutoff takes every token, so the result is exact."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from distributed.engine.row_sampling import RowSampling, uniform

Float32Array = NDArray[np.float32]

# Probabilities relative to the most likely token above which tokens become candidates, tried in turn.
_CUTOFFS = (1e-2, 1e-4, 1e-7, 0.0)
# From this many candidates on, sorting integer keys is faster (numpy 2.4 with AVX2).
_MANY = 2000
_SURELY_LESS = 0.999  # covers the rounding of float32 sums in any order
_MAX_FLOAT = float(np.finfo(np.float32).max)
_NUM_PARTS = 64  # maxima over so many parts of the vocabulary take a fifth of the time of an argpartition
# A repetition penalty of 0 is taken as this: no logit becomes infinite.
_MIN_PENALTY = 1e-30


class DrawnToken(NamedTuple):
    """A token id; where asked for its logprob (None: -infinity), and the likeliest ids with theirs."""

    id: int
    logprob: float | None = None
    alternatives: tuple[tuple[int, float | None], ...] = ()


def draw_token(logits: Float32Array, best: int, row: RowSampling) -> DrawnToken | None:
    """Draw a token from one row's raw logits (V,), left unchanged, whose argmax is `best`.

    Returns:
        None: the best logit is not finite, or nothing is left to draw from.
    """
    if not math.isfinite(logits[best]):
        return None
    allowed = logits
    if row.has_edits and not row.is_settled_by(best):
        allowed = edit(logits, row)
        best = int(allowed.argmax())
        if not math.isfinite(allowed[best]):
            return None
    token = best if row.is_greedy else draw(allowed, best, row)
    return DrawnToken(token) if row.logprobs is None else read_logprobs(logits, token, row.logprobs)


def read_logprobs(logits: Float32Array, token_id: int, num_alternatives: int) -> DrawnToken:
    """Return a token with its logprob and the likeliest tokens' with theirs, of raw logits (V,)."""
    with np.errstate(invalid="ignore"):  # logits that are not finite give None
        shifted = logits - logits.max()
        log_sum = np.log(np.exp(shifted).sum())
        ids = likeliest(logits, num_alternatives)
        own, *others = (shifted[[token_id, *ids]] - log_sum).tolist()
    alternatives = tuple((token, _finite(value)) for token, value in zip(ids, others, strict=True))
    return DrawnToken(token_id, _finite(own), alternatives)


def likeliest(logits: Float32Array, num: int) -> list[int]:
    """Return the ids of the largest logits (V,), best first."""
    if not num:
        return []
    size = len(logits) // _NUM_PARTS
    parts = logits[: size * _NUM_PARTS].reshape(_NUM_PARTS, size)
    maxima = parts.max(axis=0) if size >= num else logits
    floor = np.partition(maxima, -num)[-num]  # that many logits reach it, and few more
    ids = np.flatnonzero(logits >= floor)
    likely: list[int] = ids[np.argsort(-logits[ids], kind="stable")[:num]].tolist()
    return likely


def _finite(logprob: float) -> float | None:
    return logprob if math.isfinite(logprob) else None


def edit(logits: Float32Array, row: RowSampling) -> Float32Array:
    """Return logits (V,) with the row's penalties, bias and mask."""
    edited = logits.copy()
    if row.counts is not None:
        ids, nums = row.counts.ids, row.counts.nums
        seen, penalty = edited[ids], max(row.repetition_penalty, _MIN_PENALTY)
        seen = np.where(seen > 0, seen / penalty, seen * penalty)
        edited[ids] = seen - row.frequency_penalty * nums - row.presence_penalty * (nums > 0)
    if row.logit_bias:
        edited[list(row.logit_bias)] += list(row.logit_bias.values())
    if row.mask is not None:
        bits = np.unpackbits(row.mask.view(np.uint8), count=len(edited), bitorder="little")
        np.putmask(edited, bits == 0, -np.inf)
    return edited


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
