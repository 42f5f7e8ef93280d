"""Muse Glimmer, whose inner model divides embeddings by their root mean square."""

from typing import Any

import mlx.core as mx

from distributed.models.general import GeneralProvider


class GlimmerProvider(GeneralProvider):
    """mlx-lm's muse_glimmer."""

    def pass_embeddings(self, inner: Any) -> None:
        """Let a later stage take hidden states as they are."""
        super().pass_embeddings(inner)

        class LaterStage(type(inner)):  # type: ignore[misc]
            def __call__(self, inputs: mx.array, cache: Any) -> mx.array:
                hidden = inputs
                for layer, own, mask in zip(self.layers, cache, self._masks(hidden, cache), strict=True):
                    hidden = layer(hidden, mask, own)
                out: mx.array = self.norm(hidden)
                return out

        inner.__class__ = LaterStage
