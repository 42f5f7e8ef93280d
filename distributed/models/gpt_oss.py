"""gpt-oss as transformers saves it, beside what mlx-lm's own class takes: MLX's layout and OpenAI's mxfp4."""

from typing import Any

import mlx.core as mx

from distributed.models.general import GeneralProvider
from distributed.models.weights import Weights


class GptOssProvider(GeneralProvider):
    """mlx-lm's gpt_oss."""

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
