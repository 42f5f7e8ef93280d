"""Gemma 4 without embeddings of each layer and without shared KV: both would cross a cut."""

from typing import Any

from distributed.models.general import GeneralProvider
from distributed.models.stage_model import PassThrough


class _PassedLayer(PassThrough):
    """Returns what a layer does: hidden states, and keys, values and offset for layers that share them."""

    def __call__(self, inputs: Any, *_: Any, **__: Any) -> Any:
        return inputs, None, None


class Gemma4Provider(GeneralProvider):
    """mlx-lm's gemma4_text."""

    passed_layer = _PassedLayer
