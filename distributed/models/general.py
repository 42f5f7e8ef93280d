"""The general provider: cut any mlx-lm model whose inner model is embed -> layers -> norm into stages.

The whole model is built lazily with its published class (its random initial weights are never evaluated),
packed modules are set up, and the model is cut: what other stages own passes through. So every layer keeps
its place, and what a model decides by a layer's number comes right. The head is the model's own call around
an inner model that passes through, with every scale and cap that the call applies. Only then are this stage's
tensors read. Which model types may be cut this way is decided by the records in families.py, never by
structure.
"""

import copy
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from distributed.models.stage_model import HEAD, PassThrough, StageModel, drop_head
from distributed.models.weights import Weights, fill, load_tensors, materialize, quantize_modules
from distributed.planning.checkpoint import BadCheckpoint, TensorInfo, is_tied, tensor_files
from distributed.planning.families import FAMILIES
from distributed.planning.stage_files import LAYER, StageCut, check_tensors
from distributed.planning.window_config import FULL, layer_windows
from prompts.mlx_lm_import import import_mlx_lm

rope_utils = import_mlx_lm("models.rope_utils")

_DTYPES = {"F32": mx.float32, "F16": mx.float16, "BF16": mx.bfloat16, "U32": mx.uint32, "U8": mx.uint8}


class GeneralProvider:
    """Cuts models of one type into stages; a family that needs more overrides what differs."""

    passed_layer = PassThrough  # in the place of other stages' layers

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
        """Build the whole model, lazily, with mlx-lm's own class; ours is the scaling of rotary embeddings.

        Of the classes some ignore a scaling, some know one kind alone (mlx_lm 0.32.2).
        """
        module = import_mlx_lm(f"models.{config['model_type']}")
        has_masks = FAMILIES[config["model_type"]].masks_windows
        read = {**config, "rope_scaling": None, **self.arguments(config)}
        if not has_masks:
            read |= {"layer_types": None, "sliding_window": None}
        model = module.Model(module.ModelArgs.from_dict(read))
        if config.get("rope_scaling"):
            _scale_ropes(model, config)
        for layer, window in zip(model.layers, () if has_masks else layer_windows(config), strict=False):
            _put_window(layer.self_attn, window)
        if config["tie_word_embeddings"]:
            drop_head(model)
        return model

    def arguments(self, config: dict[str, Any]) -> dict[str, Any]:
        """Return what the class reads in another form than `read_config` gives it."""
        return {}

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
        weights, modules = self._assemble(whole, cut, config, _with_stand_ins(weights, names, cut))
        return StageParts(modules, whole, cut, config, _stored_dtype(weights))

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
        except (TypeError, LookupError, ValueError, ArithmeticError, AttributeError) as error:
            raise BadCheckpoint(f"{name}: config.json does not describe a model: {error}") from error
        return whole, StageCut(layers, is_first, is_last, is_tied=tied and "lm_head" not in whole)

    def _assemble(
        self, whole: Any, cut: StageCut, config: dict[str, Any], weights: Weights
    ) -> tuple[Weights, Any]:
        """Put a stage's weights into its part of the model, lazily; returns both."""
        if hasattr(whole, "sanitize"):
            weights = whole.sanitize(weights)
        weights = {name: array for name, array in weights.items() if cut.local_name(name) is not None}
        weights = self.adapt(weights, config)
        quantize_modules(whole, weights, config)
        parts = self._cut_parts(whole, cut)
        if not cut.is_first:
            self.pass_embeddings(parts.inner)
            if factor := FAMILIES[config["model_type"]].embedding_factor:
                parts.inner.embed_tokens = _Handed(parts.inner.embed_tokens)
                _set_to_one(parts.inner, factor)  # applied by the first stage
        fill(parts, {cut.local_name(name) or name: array for name, array in weights.items()})
        return weights, parts

    def _cut_parts(self, model: Any, cut: StageCut) -> nn.Module:
        """Return a module of `inner` (the cut inner model) and, where the stage has its own, `head`."""
        parts, inner = nn.Module(), model.model
        parts.inner = inner
        if cut.has_own_head:
            parts[HEAD] = inner.embed_tokens if cut.is_tied else model.lm_head
        inner.layers = [
            layer if number in cut.layers else self.passed_layer(layer)
            for number, layer in enumerate(inner.layers)
        ]
        if not cut.is_last:
            inner.norm = PassThrough(inner.norm)
        return parts

    def pass_embeddings(self, inner: Any) -> None:
        """Let a later stage's inner model take hidden states in the place of ids."""
        inner.embed_tokens = PassThrough(inner.embed_tokens)


def _scale_ropes(model: Any, config: dict[str, Any]) -> None:
    """Put the config's rotary embedding in the place of those that are scaled."""
    kinds = config.get("layer_types") if FAMILIES[config["model_type"]].local_theta else None
    for i, layer in enumerate(model.layers):
        rope: Any = getattr(layer.self_attn, "rope", None)
        # A layer may have no positions.
        if hasattr(rope, "dims") and (kinds is None or kinds[i] == FULL):
            is_traditional = getattr(rope, "traditional", False)
            layer.self_attn.rope = make_rope(config, rope.dims, is_traditional=is_traditional)


def _put_window(attention: Any, window: int | None) -> None:
    """Let attention see a window, or all tokens, where its class has one mask for all layers."""
    # gemma2's are (B, KV heads, queries of each, T, S).
    has_own_scores = hasattr(attention, "attn_logit_softcapping")

    class Windowed(type(attention)):  # type: ignore[misc]
        def __call__(self, x: mx.array, *others: Any) -> mx.array:
            *scales, _, cache = others  # ministral3 has a scale before the mask
            num = x.shape[1]
            mask = cache.make_mask(num, return_array=has_own_scores and num > 1, window_size=window)
            if has_own_scores and mask is not None and self.repeats > 1:
                mask = mask[:, None]
            out: mx.array = super().__call__(x, *scales, mask, cache)
            return out

    attention.__class__ = Windowed


def make_rope(config: dict[str, Any], num_values: int, *, is_traditional: bool) -> Any:
    """Make the rotary embedding of a config as `read_config` returns it."""
    scaling = config["rope_scaling"]
    rope = rope_utils.initialize_rope(
        num_values, config["rope_theta"], is_traditional, scaling, config["max_position_embeddings"]
    )
    if scaling and scaling.get("truncate") is False:
        rope._freqs = _yarn_periods(num_values, config["rope_theta"], **scaling)
    return rope


def _yarn_periods(
    num_values: int,
    theta: float,
    *,
    factor: float,
    original_max_position_embeddings: int,
    beta_fast: float = 32,
    beta_slow: float = 1,
    **_: Any,
) -> mx.array:
    """Return each pair's period by yarn with a ramp between fractions of pairs (transformers 5.24
    modeling_rope_utils.py); mlx-lm's class rounds its ends to whole pairs."""
    turns = original_max_position_embeddings / (2 * math.pi)
    first, last = (
        num_values * math.log(turns / beta) / (2 * math.log(theta)) for beta in (beta_fast, beta_slow)
    )
    first, last = max(first, 0), min(last, num_values - 1)
    ramp = mx.clip((mx.arange(num_values // 2) - first) / max(last - first, 0.001), 0, 1)
    plain = theta ** (mx.arange(0, num_values, 2, dtype=mx.float32) / num_values)
    return 1 / (ramp / (factor * plain) + (1 - ramp) / plain)


def _with_stand_ins(weights: Weights, names: Collection[str], cut: StageCut) -> Weights:
    """Return the weights with arrays that are never read in the place of other stages' layers.

    A class may join experts in all layers if it finds them in the first (mlx_lm 0.32.2).
    """
    matches = [match for match in map(LAYER.fullmatch, names) if match]
    own = {match[2]: weights[match[0]] for match in matches if match[0] in weights}
    others = {match[0]: match[2] for match in matches if int(match[1]) not in cut.layers}
    return weights | {name: own[rest] for name, rest in others.items() if rest in own}


def _stored_dtype(weights: Weights) -> Any:
    """Return the type that norms are stored in: a stage computes in it."""
    return weights[min(name for name in weights if name.endswith("layernorm.weight"))].dtype


class _Handed(PassThrough):
    """Hands on another array of the same values: a class may multiply what it gets in its place."""

    def __call__(self, inputs: mx.array, *_: Any, **__: Any) -> mx.array:
        return mx.array(inputs)


def _set_to_one(module: Any, path: str) -> None:
    """Set an attribute, dotted if it lies deeper, of this module alone."""
    *places, name = path.split(".")
    for place in places:
        setattr(module, place, copy.copy(getattr(module, place)))
        module = getattr(module, place)
    setattr(module, name, 1)


@dataclass(frozen=True)
class StageParts:
    """One stage, built and cut; its weights are read by `read`, and stay lazy until then."""

    modules: Any  # `inner`, and `head` where the stage has one of its own
    whole: Any  # the model that `inner` was cut from
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
        return StageModel(
            inner=self.inner,
            head=self._make_head() if self.cut.is_last else None,
            layers=self.cut.layers,
            is_first=self.cut.is_first,
            is_last=self.cut.is_last,
            hidden_size=self.config["hidden_size"],
            vocab_size=self.config["vocab_size"],
            dtype=dtype,
            weights_bytes=sum(array.nbytes for _, array in tree_flatten(self.modules.parameters())),
            windows=layer_windows(self.config)[self.cut.layers.start : self.cut.layers.stop],
        )

    def _make_head(self) -> Any:
        """Return the model's own call, which takes hidden states for those of its inner model."""
        self.whole.model = PassThrough(self.inner)
        if self.cut.is_tied:
            self.whole.model.embed_tokens = self.head
        else:
            self.whole.lm_head = self.head
        return self.whole
