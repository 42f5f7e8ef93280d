"""Sampling: from logits to tokens, each row with its request's parameters and key. Runs on rank 0 only.

The rows' logits leave MLX here; draw.py draws from each.
"""

from __future__ import annotations

from collections.abc import Sequence as Items

import mlx.core as mx
import numpy as np

from distributed.backends.backend import Greedy
from distributed.engine.draw import DrawnToken, draw_token, read_logprobs
from distributed.engine.row_sampling import RowSampling


def sample(
    logits: mx.array, rows: Items[RowSampling], greedy: Greedy | None = None
) -> list[DrawnToken | None]:
    """Draw one token a row.

    Args:
        logits: (B, V) of any float type; evaluated here, together with the greedy rows' argmax.
        greedy: a faster way to the most likely ids, for rows that want nothing else; see StageRunner.

    Returns:
        The tokens; None for a row whose logits hold NaN or infinity, or nothing but -infinity.
    """
    plain = [i for i, row in enumerate(rows) if row.is_plain] if greedy is not None else []
    drawn: dict[int, DrawnToken | None] = {}
    if plain and greedy is not None:
        ids = greedy(_take(logits, plain))
        drawn = {i: None if token is None else DrawnToken(token) for i, token in zip(plain, ids, strict=True)}
    others = [i for i in range(len(rows)) if i not in drawn]
    if others:
        values = _take(logits, others).astype(mx.float32)
        mx.eval(values)
        array = np.asarray(values)
        best = array.argmax(axis=-1)  # the first NaN, if there is one; faster than MLX's CPU build
        for i, row_logits, token in zip(others, array, best.tolist(), strict=True):
            drawn[i] = draw_token(row_logits, token, rows[i])
    return [drawn[i] for i in range(len(rows))]


def sample_known(logits: mx.array, token_ids: Items[int], nums_alternatives: Items[int]) -> list[DrawnToken]:
    """Return known tokens as if they had been drawn, with their logprobs; logits (B, V), one row a token."""
    values = np.asarray(logits.astype(mx.float32))
    return [read_logprobs(*each) for each in zip(values, token_ids, nums_alternatives, strict=True)]


def _take(logits: mx.array, rows: list[int]) -> mx.array:
    return logits if len(rows) == len(logits) else logits[mx.array(rows)]
