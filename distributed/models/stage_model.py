"""The part of a model that one rank has: layers; on the first stage embeddings, on the last norm and head.

Knows nothing of ranks, of what caches hold, of files, or of what runs the layers. Everything is lazy: nothing
here evaluates.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

HEAD = "head"  # the cut's part that is the last stage's own head


class Identity(nn.Module):
    """Stands in the place of the embeddings or the norm on stages that do not own them."""

    def __call__(self, x: mx.array) -> mx.array:
        return x


@dataclass(frozen=True)
class StageModel:
    """One stage with its weights; `inner` is mlx-lm's embed -> layers -> norm, cut to this stage."""

    inner: Any
    head: Callable[[mx.array], mx.array] | None  # (B, D) -> (B, V); only on the last stage
    layers: range
    is_first: bool
    is_last: bool
    hidden_size: int
    vocab_size: int
    dtype: Any  # mx.Dtype of the hidden states
    weights_bytes: int
