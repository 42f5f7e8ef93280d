"""Grouped-query attention over a slot table, in place and without a mask the size of the scores.

Letters: B rows, T new tokens, S cached tokens, G key heads, R query heads a key head, D head width.
"""

from __future__ import annotations

from functools import cache

import mlx.core as mx
import numpy as np

from distributed.backends.cpu.compiling import Float32Array
from distributed.backends.cpu.kv_table import LayerKV, View


def attend_chunks(queries: Float32Array, kv: LayerKV, view: View) -> Float32Array:
    """Return softmax(q k^T) v of the new tokens of each row, as (B * T, H * D).

    Args:
        queries: (B * T, H, D), rotated and scaled; head h reads key head h // R.
    """
    step, num_kv_heads = view.step, kv.keys.shape[1]
    width = queries.shape[-1]
    shape = (step.num_rows, step.num_tokens, num_kv_heads, -1, width)
    grouped = queries.reshape(shape)
    out = np.zeros(grouped.shape, np.float32)
    for row, (slot, start, count) in enumerate(zip(step.slots, step.offsets, step.counts, strict=True)):
        if not count:
            continue  # a hole
        for head in range(num_kv_heads):
            end = start + count
            out[row, :count, head] = _attend_chunk(
                grouped[row, :count, head], kv.keys[slot, head, :end], kv.values[slot, head, :end]
            )
    return out.reshape(step.num_rows * step.num_tokens, -1)


def _attend_chunk(queries: Float32Array, keys: Float32Array, values: Float32Array) -> Float32Array:
    """One key head of one row: queries (T, R, D), keys and values (S, D), the last T being the new ones."""
    num_tokens, num_heads, width = queries.shape
    scores = queries.reshape(-1, width) @ keys.T  # (T * R, S)
    later = scores.reshape(num_tokens, num_heads, -1)[:, :, len(keys) - num_tokens :]
    later += causal_mask(num_tokens)[:, None]
    totals = exponentiate(scores)
    out = np.matmul(scores, values)
    out /= totals
    shaped: Float32Array = out.reshape(num_tokens, num_heads, width)
    return shaped


def softmax_in_place(scores: mx.array) -> mx.array:
    """Evaluate scores (…, S) float32 and turn them into weights that sum to one, in their own memory.

    MLX's CPU build takes much longer for an exponential than NumPy. Writing through NumPy's view changes the
    MLX array (MLX documentation, "Conversion to NumPy").
    """
    mx.eval(scores)
    seen = np.asarray(scores)
    seen /= exponentiate(seen)
    return scores


def exponentiate(scores: Float32Array) -> Float32Array:
    """Turn scores into weights relative to each row's greatest, in place; return their sums, (…, 1)."""
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    totals: Float32Array = scores.sum(axis=-1, keepdims=True)
    return totals


@cache
def causal_mask(num_tokens: int) -> Float32Array:
    """(T, T): 0 where a token may see, -inf where it may not."""
    return np.triu(np.full((num_tokens, num_tokens), -np.inf, np.float32), 1)
