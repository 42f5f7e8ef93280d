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


class Draws:
    """One draw a row, in two parts: what MLX does for it is lazy until `finish`."""

    def __init__(
        self, logits: mx.array | None = None, rows: Items[RowSampling] = (), greedy: Greedy | None = None
    ) -> None:
        """
        Args:
            logits: (B, V) of any float type, one row each; may be lazy.
            greedy: a faster way to the most likely ids, for rows that want nothing else; see StageRunner.
        """
        self.rows = rows
        self._plain = [i for i, row in enumerate(rows) if row.is_plain] if greedy is not None else []
        self._others = [i for i, row in enumerate(rows) if greedy is None or not row.is_plain]
        self.arrays: list[mx.array] = []  # what `finish` reads
        if greedy is not None and logits is not None and self._plain:
            self.arrays.append(greedy(_take(logits, self._plain)))
        if logits is not None and self._others:
            self.arrays.append(_take(logits, self._others).astype(mx.float32))

    def finish(self) -> list[DrawnToken | None]:
        """Return the tokens; None for a row whose logits hold NaN or infinity, or nothing but -infinity."""
        drawn: dict[int, DrawnToken | None] = {}
        if self._plain:
            ids = zip(self._plain, self.arrays[0].tolist(), strict=True)
            drawn = {i: DrawnToken(token) if token >= 0 else None for i, token in ids}
        if self._others:
            array = np.asarray(self.arrays[-1])
            best = array.argmax(axis=-1)  # the first NaN, if there is one; faster than MLX's CPU build
            for i, row_logits, token in zip(self._others, array, best.tolist(), strict=True):
                drawn[i] = draw_token(row_logits, token, self.rows[i])
        return [drawn[i] for i in range(len(self.rows))]


def sample_known(logits: mx.array, token_ids: Items[int], nums_alternatives: Items[int]) -> list[DrawnToken]:
    """Return known tokens as if they had been drawn, with their logprobs; logits (B, V), one row a token."""
    values = np.asarray(logits.astype(mx.float32))
    return [read_logprobs(*each) for each in zip(values, token_ids, nums_alternatives, strict=True)]


def _take(logits: mx.array, rows: list[int]) -> mx.array:
    return logits if len(rows) == len(logits) else logits[mx.array(rows)]
