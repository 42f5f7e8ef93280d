"""The part of a model that one rank has: layers; on the first stage embeddings, on the last norm and head.

Knows nothing of ranks, of caches but their kinds, of files, or of what runs the layers. Everything is lazy:
nothing here evaluates.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from distributed.planning.families.hybrids import CacheKind

HEAD = "head"  # the cut's part that is the last stage's own head


class PassThrough(nn.Module):
    """Stands in the place of a part that a stage does not own: what comes in goes out.

    It keeps the plain attributes of the part and of parts within it, which the model around it may ask for:
    the kind of a layer, a scale.
    """

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        plain = {name: value for name, value in vars(part).items() if not name.startswith("_")}
        self.__dict__.update(plain)
        for name, child in part.items():
            if isinstance(child, nn.Module):
                self[name] = PassThrough(child)

    def __call__(self, inputs: mx.array, *_: Any, **__: Any) -> mx.array:
        return inputs


def drop_head(model: Any) -> None:
    """Take away the head of a tied model whose class has one until it sees that the weights have none."""
    if "lm_head" in model:
        model.sanitize({})
        model.sanitize = lambda weights: weights


@dataclass(frozen=True)
class StageModel:
    """One stage with its weights.

    `inner` is mlx-lm's embed -> layers -> norm; what other stages own passes through.
    """

    inner: Any
    head: Callable[[mx.array], mx.array] | None  # (B, D) -> (B, V); only on the last stage
    layers: range
    is_first: bool
    is_last: bool
    hidden_size: int
    vocab_size: int
    dtype: Any  # mx.Dtype of the hidden states
    weights_bytes: int
    # What the layers at all places cache; None: each has keys and values.
    kinds: tuple[tuple[CacheKind, ...], ...] | None = None
    windows: tuple[int | None, ...] = ()  # of the stage's layers; none: each sees all tokens

    @property
    def own_layers(self) -> Sequence[Any]:
        """The stage's own layers; `inner` has all places."""
        layers: Sequence[Any] = self.inner.layers
        return layers[self.layers.start : self.layers.stop]
