"""The part of a model that one rank runs: layers; on the first stage embeddings, on the last norm and head.

Knows nothing of ranks, of what caches hold, or of files. Everything is lazy: nothing here evaluates.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from distributed.backends.cpu.dense import DenseLayers
from distributed.backends.kv_cache import KVTable


class Identity(nn.Module):
    """Stands in the place of the embeddings or the norm on stages that do not own them."""

    def __call__(self, x: mx.array) -> mx.array:
        return x


@dataclass(frozen=True)
class StageModel:
    """One stage, ready to run; `inner` is mlx-lm's embed -> layers -> norm, cut to this stage."""

    inner: Any
    head: Callable[[mx.array], mx.array] | None  # (B, D) -> (B, V); only on the last stage
    layers: range
    is_first: bool
    is_last: bool
    num_layers_total: int
    hidden_size: int
    vocab_size: int
    dtype: Any  # mx.Dtype of the hidden states
    weights_bytes: int
    cpu: DenseLayers | None = None  # runs the same layers, without MLX, on a machine without a GPU
    works_aside: bool = True  # the layers run on threads of MLX or on the GPU, and leave the caller's free

    def make_table(self) -> Any:
        """Make an empty KV table of the kind that `forward` writes."""
        return self.cpu.make_table() if self.cpu is not None else KVTable(len(self.layers))

    def forward(self, x: mx.array, begun: Any) -> mx.array:
        """Run this stage's layers.

        Args:
            x: ids (B, T) int32 on the first stage, hidden states (B, T, D) on the others.
            begun: what `begin` of a table made by `make_table` returned.

        Returns:
            hidden states (B, T, D), after the final norm on the last stage.
        """
        return self.inner(x, begun) if self.cpu is None else self.cpu.forward(x, begun)

    def logits(self, hidden: mx.array) -> mx.array:
        """Return the logits (B, V) of hidden states (B, D); last stage only."""
        assert self.head is not None, "only the last stage has the head"
        return self.head(hidden) if self.cpu is None else self.cpu.logits(hidden)
