"""The general provider: cut any mlx-lm model whose inner model is embed -> layers -> norm into stages.

The whole model is built lazily with its published class (its random initial weights are never evaluated),
packed modules are set up, and the model is cut: other stages' layers are dropped, and where this stage does
not own the embeddings or the norm an identity takes their place, so the layers run unchanged. Only then are
this stage's tensors read. Which model types may be cut this way is decided by the allow-list in __init__.py,
never by structure.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from distributed.backends.cpu.dense import DenseLayers, DensePlan, plan_dense_layers
from distributed.backends.cpu.experts import place_experts
from distributed.models.stage_model import Identity, StageModel
from distributed.models.weights import (
    Weights,
    fill,
    load_tensors,
    materialize,
    quantize_modules,
)
from distributed.planning.checkpoint import BadCheckpoint, TensorInfo, is_tied, tensor_files
from distributed.planning.stage_files import StageCut, check_tensors
from prompts.mlx_lm_import import import_mlx_lm

rope_utils = import_mlx_lm("models.rope_utils")

HEAD = "head"  # the cut's part that is the last stage's own head
_DTYPES = {"F32": mx.float32, "F16": mx.float16, "BF16": mx.bfloat16, "U32": mx.uint32, "U8": mx.uint8}


class GeneralProvider:
    """Cuts models of one type into stages; a family that needs more overrides `build` or `adapt`."""

    def check(self, name: str, config: dict[str, Any], tensors: Mapping[str, TensorInfo]) -> None:
        """Fill the whole model with tensors that are never made; see models.check_model."""
        check_tensors(name, config, tensors)
        whole, cut = self._build_whole(name, config, tensors, range(config["num_hidden_layers"]))
        shapes = {
            tensor: mx.zeros(info.shape, _DTYPES[info.dtype])
            for tensor, info in tensors.items()
            if cut.local_name(tensor) is not None
        }
        try:
            self._assemble(whole, cut, config, shapes)
        except BadCheckpoint as error:
            raise BadCheckpoint(f"{name}: {error}") from error

    def build(self, config: dict[str, Any]) -> Any:
        """Build the whole model, lazily, with mlx-lm's own class."""
        module = import_mlx_lm(f"models.{config['model_type']}")
        model = module.Model(module.ModelArgs.from_dict(config))
        if config["model_type"] == "qwen3_moe":  # its class ignores rope_scaling (mlx_lm 0.32.2)
            rope = make_rope(config, config["head_dim"], is_traditional=False)
            for layer in model.layers:
                layer.self_attn.rope = rope
        return model

    def adapt(self, weights: Weights, config: dict[str, Any]) -> Weights:
        """Rename or reshape tensors from the checkpoint's form to the model's, lazily."""
        return weights

    def load(
        self,
        folder: Path,
        config: dict[str, Any],
        layers: range,
        *,
        is_first: bool,
        is_last: bool,
        on_progress: Callable[[float], None] | None = None,
        dequantize: bool = False,
        dtype: Any = None,
        cpu_products: str | None = None,
    ) -> StageModel:
        """Load one stage; see models.load_stage."""
        names = tensor_files(folder)
        whole, cut = self._build_whole(str(folder), config, names, layers, is_first=is_first, is_last=is_last)
        weights = load_tensors(folder, lambda name: cut.local_name(name) is not None)
        weights, parts = self._assemble(whole, cut, config, weights)
        dtype = dtype or default_dtype(weights[f"model.layers.{layers.start}.input_layernorm.weight"])
        del weights, whole  # what they hold would stay in memory beside its cast or unpacked form
        plan = None
        if cpu_products is not None:
            plan = plan_dense_layers(
                parts.inner,
                _head_module(parts, cut),
                config,
                dtype=dtype,
                dequantize=dequantize,
                products=cpu_products,
            )
        materialize(
            parts,
            dtype,
            dequantize=dequantize,
            on_module=(lambda path, module: plan.take(module, is_head=path == HEAD)) if plan else None,
            on_progress=on_progress,
        )
        model = _stage_model(parts, cut, config, dtype, plan)
        has_experts = cpu_products is not None and place_experts(parts.inner)
        return replace(model, works_aside=False) if has_experts else model

    def _build_whole(
        self,
        name: str,
        config: dict[str, Any],
        tensors: Collection[str],
        layers: range,
        *,
        is_first: bool = True,
        is_last: bool = True,
    ) -> tuple[Any, StageCut]:
        """The whole model, lazily, and what of it belongs to a stage."""
        tied = is_tied(config, tensors)
        try:
            whole = self.build({**config, "tie_word_embeddings": tied})
        except (TypeError, KeyError, ValueError, ArithmeticError) as error:
            raise BadCheckpoint(f"{name}: config.json does not describe a model: {error}") from error
        return whole, StageCut(layers, is_first, is_last, is_tied=tied and "lm_head" not in whole)

    def _assemble(
        self, whole: Any, cut: StageCut, config: dict[str, Any], weights: Weights
    ) -> tuple[Weights, Any]:
        """Put a stage's weights into its part of the model, lazily; returns both."""
        weights = self.adapt(whole.sanitize(weights), config)
        quantize_modules(whole, weights, config)
        parts = _cut_parts(whole, cut)
        fill(parts, {cut.local_name(name) or name: array for name, array in weights.items()})
        return weights, parts


def make_rope(config: dict[str, Any], num_values: int, *, is_traditional: bool) -> Any:
    """Make the rotary embedding of a config as `read_config` returns it."""
    return rope_utils.initialize_rope(
        num_values,
        config["rope_theta"],
        is_traditional,
        config["rope_scaling"],
        config["max_position_embeddings"],
    )


def default_dtype(stored: mx.array) -> Any:
    """Return the dtype to compute in: float32 without a GPU, else what a norm is stored in."""
    return mx.float32 if mx.default_device() == mx.Device(mx.cpu) else stored.dtype


def _cut_parts(model: Any, cut: StageCut) -> nn.Module:
    """Return a module of `inner` (the cut inner model) and, where the stage has one of its own, `head`."""
    parts = nn.Module()
    parts.inner = model.model
    if cut.has_own_head:
        parts[HEAD] = parts.inner.embed_tokens if cut.is_tied else model.lm_head
    parts.inner.layers = parts.inner.layers[cut.layers.start : cut.layers.stop]
    if not cut.is_first:
        parts.inner.embed_tokens = Identity()
    if not cut.is_last:
        parts.inner.norm = Identity()
    return parts


def _head_module(parts: Any, cut: StageCut) -> Any:
    """The linear layer, or the embedding it is tied to; None but on the last stage."""
    if not cut.is_last:
        return None
    return parts[HEAD] if cut.has_own_head else parts.inner.embed_tokens


def _stage_model(
    parts: Any, cut: StageCut, config: dict[str, Any], dtype: Any, plan: DensePlan | None
) -> StageModel:
    head, module = None, _head_module(parts, cut)
    if module is not None:
        head = module.as_linear if cut.is_tied else module
    return StageModel(
        inner=parts.inner,
        head=head,
        layers=cut.layers,
        is_first=cut.is_first,
        is_last=cut.is_last,
        num_layers_total=config["num_hidden_layers"],
        hidden_size=config["hidden_size"],
        vocab_size=config["vocab_size"],
        dtype=dtype,
        weights_bytes=sum(array.nbytes for _, array in tree_flatten(parts.parameters()))
        + (plan.packed_bytes if plan else 0),
        cpu=DenseLayers(plan, parts.inner, module) if plan else None,
        works_aside=plan is None,
    )
