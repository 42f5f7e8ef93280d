"""Hybrid models whose class looks at tensors of one kind of layer to learn how all are stored."""

from collections.abc import Collection
from itertools import product
from pathlib import Path
from typing import Any

import mlx.core as mx

from distributed.models.general import GeneralProvider
from distributed.models.weights import Weights
from distributed.planning.checkpoint import BadCheckpoint, stored_format, tensor_files
from distributed.planning.families.family import count_experts
from distributed.planning.stage_files import StageCut

_CONVOLUTION = ".linear_attn.conv1d.weight"


class Qwen35Provider(GeneralProvider):
    """Norms are stored less 1 where convolutions lie as in torch (mlx_lm 0.32.2 qwen3_5.py, sanitize)."""

    def _assemble(
        self, whole: Any, cut: StageCut, config: dict[str, Any], weights: Weights
    ) -> tuple[Weights, Any]:
        """Join experts that lie one by one, which mlx-lm does for all types but this one."""
        for layer, part in product(cut.layers, ("gate_proj", "up_proj", "down_proj")):
            mlp = f"model.layers.{layer}.mlp"
            names = [f"{mlp}.experts.{expert}.{part}.weight" for expert in range(count_experts(config))]
            if names and all(name in weights for name in names):
                weights[f"{mlp}.switch_mlp.{part}.weight"] = mx.stack([weights.pop(name) for name in names])
        return super()._assemble(whole, cut, config, weights)

    def stand_ins(self, folder: Path, weights: Weights, names: Collection[str], cut: StageCut) -> Weights:
        """Add a convolution for a stage that has none, in the layout of the program that wrote its files."""
        found = super().stand_ins(folder, weights, names, cut)
        if any(name.endswith(_CONVOLUTION) for name in weights):
            return found
        files = tensor_files(folder)
        formats = {stored_format(folder / file) for file in {files[name] for name in weights}}
        if not formats <= {"mlx", "pt"} or len(formats) > 1:
            raise BadCheckpoint(
                f"{folder}: the metadata of its files name no format, pt or mlx; a stage without linear "
                "attention needs to know it: give each rank some by LAYER_SPLIT"
            )
        convolution = mx.zeros((1, 1, 1 if formats == {"mlx"} else 2))
        return found | {next(name for name in names if name.endswith(_CONVOLUTION)): convolution}


class NemotronHProvider(GeneralProvider):
    """Its class joins experts under the inner model's own name (mlx_lm 0.32.2 nemotron_h.py, sanitize)."""

    def _assemble(
        self, whole: Any, cut: StageCut, config: dict[str, Any], weights: Weights
    ) -> tuple[Weights, Any]:
        """Give tensors the names that the class looks for."""
        prefix = "model."
        named = {
            f"backbone.{name.removeprefix(prefix)}" if name.startswith(prefix) else name: array
            for name, array in weights.items()
        }
        return super()._assemble(whole, cut, config, named)


class FalconH1Provider(GeneralProvider):
    """Its class multiplies weights by all factors but two of attention (mlx_lm 0.32.2 falcon_h1.py)."""

    def _assemble(
        self, whole: Any, cut: StageCut, config: dict[str, Any], weights: Weights
    ) -> tuple[Weights, Any]:
        """Multiply keys and values of weights that lie as in torch; MLX's are multiplied already."""
        convolutions = [array for name, array in weights.items() if name.endswith("conv1d.weight")]
        if any(array.shape[-1] > array.shape[1] for array in convolutions):
            factors = {"k_proj": config["key_multiplier"], "v_proj": config["attention_in_multiplier"]}
            for layer, (part, factor) in product(cut.layers, factors.items()):
                name = f"model.layers.{layer}.self_attn.{part}.weight"
                if name in weights:
                    weights[name] = weights[name] * factor
        return super()._assemble(whole, cut, config, weights)


def hybrid_provider(model_type: str) -> GeneralProvider:
    """Return the provider of a type of which some layers have states."""
    if model_type in ("qwen3_5", "qwen3_5_moe"):
        return Qwen35Provider()
    if model_type == "falcon_h1":
        return FalconH1Provider()
    return NemotronHProvider() if model_type == "nemotron_h" else GeneralProvider()
