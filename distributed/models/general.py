"""The general provider: cut any mlx-lm model whose inner model is embed -> layers -> norm into stages.

The whole model is built lazily with its published class (its random initial weights are never evaluated),
packed modules are set up, and the model is cut: other stages' layers are dropped, and where this stage does
not own the embeddings or the norm an identity takes their place, so the layers run unchanged. Only then are
this stage's tensors read. Which model types may be cut this way is decided by the allow-list in __init__.py,
never by structure.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from distributed.models.stage_model import HEAD, Identity, StageModel
from distributed.models.weights import Weights, fill, load_tensors, materialize, quantize_modules
from distributed.planning.checkpoint import BadCheckpoint, TensorInfo, is_tied, tensor_files
from distributed.planning.stage_files import StageCut, check_tensors
from prompts.mlx_lm_import import import_mlx_lm

rope_utils = import_mlx_lm("models.rope_utils")

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

    def open(
        self, folder: Path, config: dict[str, Any], layers: range, *, is_first: bool, is_last: bool
    ) -> "StageParts":
        """Build one stage, lazily; see models.open_stage."""
        names = tensor_files(folder)
        whole, cut = self._build_whole(str(folder), config, names, layers, is_first=is_first, is_last=is_last)
        weights = load_tensors(folder, lambda name: cut.local_name(name) is not None)
        weights, modules = self._assemble(whole, cut, config, weights)
        norm = weights[f"model.layers.{layers.start}.input_layernorm.weight"]
        return StageParts(modules, cut, config, norm.dtype)

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


@dataclass(frozen=True)
class StageParts:
    """One stage, built and cut; its weights are read by `read`, and stay lazy until then."""

    modules: Any  # `inner`, and `head` where the stage has one of its own
    cut: StageCut
    config: dict[str, Any]
    stored_dtype: Any  # mx.Dtype of a norm

    @property
    def inner(self) -> Any:
        """mlx-lm's inner model, cut to the stage."""
        return self.modules.inner

    @property
    def head(self) -> Any:
        """The linear layer, or the embedding it is tied to; None but on the last stage."""
        if not self.cut.is_last:
            return None
        return self.modules[HEAD] if self.cut.has_own_head else self.inner.embed_tokens

    def read(
        self,
        dtype: Any,
        *,
        dequantize: bool = False,
        on_module: Callable[[str, nn.Module], None] | None = None,
        on_progress: Callable[[float], None] | None = None,
    ) -> StageModel:
        """Read the weights, floats cast to dtype; see `materialize`."""
        materialize(self.modules, dtype, dequantize=dequantize, on_module=on_module, on_progress=on_progress)
        head = self.head
        return StageModel(
            inner=self.inner,
            head=head.as_linear if head is not None and self.cut.is_tied else head,
            layers=self.cut.layers,
            is_first=self.cut.is_first,
            is_last=self.cut.is_last,
            hidden_size=self.config["hidden_size"],
            vocab_size=self.config["vocab_size"],
            dtype=dtype,
            weights_bytes=sum(array.nbytes for _, array in tree_flatten(self.modules.parameters())),
        )
