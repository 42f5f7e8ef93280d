"""Models with windows that need more than the general provider does."""

import re
from collections.abc import Collection
from typing import Any

import mlx.core as mx

from distributed.models.general import GeneralProvider
from distributed.models.stage_model import PassThrough
from distributed.models.weights import Weights
from distributed.planning.checkpoint import UnsupportedModel
from distributed.planning.families.window_config import FULL
from distributed.planning.stage_files import StageCut

_AS_PUBLISHED = re.compile(r"model\.layers\.\d+\.(moe|share_expert)\.")


class _PassedLayer(PassThrough):
    """Returns what a layer does: hidden states, and keys, values and offset for layers that share them."""

    def __call__(self, inputs: Any, *_: Any, **__: Any) -> Any:
        return inputs, None, None


class Gemma4Provider(GeneralProvider):
    """mlx-lm's gemma4_text without embeddings of each layer and shared KV: both would cross a cut."""

    passed_layer = _PassedLayer


class GlimmerProvider(GeneralProvider):
    """mlx-lm's muse_glimmer, whose inner model divides embeddings by their root mean square."""

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


class GptOssProvider(GeneralProvider):
    """mlx-lm's gpt_oss, beside MLX's layout and OpenAI's mxfp4 as transformers saves it."""

    def build(self, config: dict[str, Any]) -> Any:
        """Build mlx-lm's model, lazily."""
        model = super().build(config)
        sanitize = model.sanitize
        model.sanitize = lambda weights: sanitize(_take_apart(weights))
        return model


def _take_apart(weights: Weights) -> Weights:
    """Give experts MLX's form, (E, I, D) each, if gates and ups alternate in one plain tensor (E, D, 2 I)."""
    if not any(name.endswith(".experts.gate_up_proj") for name in weights):
        return weights
    parts: Weights = {}
    for name, array in weights.items():
        path, _, leaf = name.rpartition(".experts.")
        module, what = leaf.removesuffix("_bias"), "bias" if leaf.endswith("_bias") else "weight"
        rows = array.swapaxes(1, -1) if path else array  # the outputs of (E, D, outputs) come first
        if not path:
            parts[name] = array
        elif module == "down_proj":
            parts[f"{path}.experts.down_proj.{what}"] = mx.contiguous(rows)
        else:
            parts[f"{path}.experts.gate_proj.{what}"] = mx.contiguous(rows[:, ::2])
            parts[f"{path}.experts.up_proj.{what}"] = mx.contiguous(rows[:, 1::2])
    return parts


class StepProvider(GeneralProvider):
    """mlx-lm's step3p5 in MLX's layout."""

    def arguments(self, config: dict[str, Any]) -> dict[str, Any]:
        """Return each layer's theta."""
        full, local = config["rope_theta"], config["local_rope_theta"]
        return {"rope_theta": [full if kind == FULL else local for kind in config["layer_types"]]}

    def _build_whole(
        self, name: str, config: dict[str, Any], tensors: Collection[str], layers: range, **ends: bool
    ) -> tuple[Any, StageCut]:
        # The class adds 1 to norms where it sees experts under these names, and a stage may have no experts.
        if any(_AS_PUBLISHED.match(tensor) for tensor in tensors):
            raise UnsupportedModel(
                f"{name}: Step 3.5 is served in MLX's layout, which mlx_lm.convert makes of this one"
            )
        return super()._build_whole(name, config, tensors, layers, **ends)


PROVIDERS: dict[str, type[GeneralProvider]] = {
    "gemma4_text": Gemma4Provider,
    "gpt_oss": GptOssProvider,
    "muse_glimmer": GlimmerProvider,
    "step3p5": StepProvider,
}
