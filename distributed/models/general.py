"""The general provider: cut any mlx-lm model whose inner model is embed -> layers -> norm into stages.

The whole model is built lazily with its published class (its random initial weights are never evaluated),
packed modules are set up, and the model is cut: what other stages own passes through. So every layer keeps
its place, and what a model decides by a layer's number comes right. The head is the model's own call around
an inner model that passes through, with every scale and cap that the call applies. Only then are this stage's
tensors read. Which model types may be cut this way is decided by the records in planning/families/, never by
structure.
"""

import math
from collections.abc import Callable, Collection, Mapping
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from distributed.models.stage_model import HEAD, PassThrough, StageModel, drop_head
from distributed.models.weights import Weights, fill, load_tensors, materialize, quantize_modules
from distributed.planning.checkpoint import BadCheckpoint, TensorInfo, is_tied, tensor_files
from distributed.planning.families.hybrids import layer_kinds
from distributed.planning.families.model_config import tensor_name
from distributed.planning.families.served import FAMILIES
from distributed.planning.families.window_config import FULL, layer_windows
from distributed.planning.stage_files import EMBEDDINGS, LAYER, NORMS, StageCut, check_tensors
from prompts.mlx_lm_import import import_mlx_lm

rope_utils = import_mlx_lm("models.rope_utils")

_CORRECTION = ".e_score_correction_bias"
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
        family = FAMILIES[config["model_type"]]
        has_masks = family.masks_windows or family.kv == "state"
        read = {"rope_parameters": None, **config, "rope_scaling": None, **self.arguments(config)}
        if not has_masks:
            read |= {"layer_types": None, "sliding_window": None}
        model = module.Model(module.ModelArgs.from_dict(read))
        if config.get("rope_scaling"):
            _scale_ropes(model, config)
        for layer, window in zip(model.layers, () if has_masks else layer_windows(config), strict=False):
            _put_window(layer.self_attn, window)
        if config["tie_word_embeddings"] and family.kv != "state":
            drop_head(model)
        return model

    def arguments(self, config: dict[str, Any]) -> dict[str, Any]:
        """Return what the class reads in another form than `read_config` gives it."""
        return {}

    def adapt(self, model: Any, weights: Weights, config: dict[str, Any]) -> Weights:
        """Rename or reshape tensors from the checkpoint's form to the model's, lazily."""
        adapted: Weights = model.sanitize(weights) if hasattr(model, "sanitize") else weights
        return adapted

    def open(
        self, folder: Path, config: dict[str, Any], layers: range, *, is_first: bool, is_last: bool
    ) -> "StageParts":
        """Build one stage, lazily; see models.open_stage."""
        names = tensor_files(folder)
        whole, cut = self._build_whole(str(folder), config, names, layers, is_first=is_first, is_last=is_last)
        weights = load_tensors(folder, lambda name: cut.local_name(name) is not None)
        weights |= self.stand_ins(folder, weights, names, cut)
        weights, modules = self._assemble(whole, cut, config, weights)
        return StageParts(modules, _text_of(whole), cut, config, _stored_dtype(weights))

    def stand_ins(self, folder: Path, weights: Weights, names: Collection[str], cut: StageCut) -> Weights:
        """Return arrays that are never read for tensors that other stages own.

        A class may join experts in all layers if it finds them in the first (mlx_lm 0.32.2).
        """
        matches = [match for match in map(LAYER.fullmatch, names) if match]
        own = {match[2]: weights[match[0]] for match in matches if match[0] in weights}
        others = {match[0]: match[2] for match in matches if int(match[1]) not in cut.layers}
        # Copies of the handles, since a class may multiply in place (mlx_lm 0.32.2 falcon_h1.py, sanitize).
        return {name: copy(own[rest]) for name, rest in others.items() if rest in own}

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
        return whole, StageCut(layers, is_first, is_last, is_tied=tied and "lm_head" not in _text_of(whole))

    def _assemble(
        self, whole: Any, cut: StageCut, config: dict[str, Any], weights: Weights
    ) -> tuple[Weights, Any]:
        """Put a stage's weights into its part of the model, lazily; returns both."""
        try:
            adapted = self.adapt(whole, weights, config)
        except KeyError as error:
            raise BadCheckpoint(f"the checkpoint lacks {error.args[0]}") from None
        weights = {tensor_name(name): array for name, array in adapted.items()}
        weights = {name: array for name, array in weights.items() if cut.local_name(name) is not None}
        if (config.get("n_group") or 1) > 1:
            weights |= {name: _above_zero(weights[name]) for name in weights if name.endswith(_CORRECTION)}
        quantize_modules(_text_of(whole), weights, config)
        parts = self._cut_parts(_text_of(whole), cut)
        if not cut.is_first:
            self.pass_embeddings(parts.inner)
            if factor := FAMILIES[config["model_type"]].embedding_factor:
                parts.inner.embed_tokens = _Handed(parts.inner.embed_tokens)
                _set_to_one(parts.inner, factor)  # applied by the first stage
        fill(parts, {cut.local_name(name) or name: array for name, array in weights.items()})
        return weights, parts

    def _cut_parts(self, model: Any, cut: StageCut) -> nn.Module:
        """Return a module of `inner` (the cut inner model) and, where the stage has its own, `head`."""
        parts, inner = nn.Module(), model[_inner_name(model)]
        parts.inner = inner
        if cut.has_own_head:
            parts[HEAD] = inner[_name_in(inner, EMBEDDINGS)] if cut.is_tied else model.lm_head
        inner.layers = [
            layer if number in cut.layers else self.passed_layer(layer)
            for number, layer in enumerate(inner.layers)
        ]
        if not cut.is_last:
            norm = _name_in(inner, NORMS)
            setattr(inner, norm, PassThrough(inner[norm]))
        return parts

    def pass_embeddings(self, inner: Any) -> None:
        """Let a later stage's inner model take hidden states in the place of ids."""
        embeddings = _name_in(inner, EMBEDDINGS)
        setattr(inner, embeddings, PassThrough(inner[embeddings]))


def _scale_ropes(model: Any, config: dict[str, Any]) -> None:
    """Put the config's rotary embedding in the place of those that are scaled."""
    kinds = config.get("layer_types") if FAMILIES[config["model_type"]].local_theta else None
    for i, layer in enumerate(model.layers):
        rope: Any = getattr(layer.get("self_attn"), "rope", None)
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


def _above_zero(correction: mx.array) -> mx.array:
    """Raise the corrections of an expert's score by the same, so that none is negative.

    mlx-lm hides the experts of groups that were not chosen behind a score of 0, where DeepSeek's own code has
    minus infinity (mlx_lm 0.32.2 models/deepseek_v3.py, group_expert_select).
    """
    correction = correction.astype(mx.float32)
    return correction - mx.minimum(correction.min(), 0)


def _stored_dtype(weights: Weights) -> Any:
    """Return the type that norms are stored in: a stage computes in it."""
    norms = [name for name in weights if name.endswith("norm.weight")]
    return weights[min(norms, key=lambda name: (not name.endswith("layernorm.weight"), name))].dtype


def _text_of(model: Any) -> Any:
    """Return the part that is embed -> layers -> norm -> head of a model that may see as well."""
    return model.language_model if "language_model" in model else model


def _name_in(module: Any, names: Collection[str]) -> str:
    """Return the one of these names that a module has."""
    return next(name for name in names if name in module)


def _inner_name(model: Any) -> str:
    """What a model calls its embed -> layers -> norm."""
    return "backbone" if "backbone" in model else "model"


class _Handed(PassThrough):
    """Hands on another array of the same values: a class may multiply what it gets in its place."""

    def __call__(self, inputs: mx.array, *_: Any, **__: Any) -> mx.array:
        return mx.array(inputs)


def _set_to_one(module: Any, path: str) -> None:
    """Set an attribute, dotted if it lies deeper, of this module alone."""
    *places, name = path.split(".")
    for place in places:
        setattr(module, place, copy(getattr(module, place)))
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
        kinds = layer_kinds(self.config)
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
            kinds=None if all(each == ("kv",) for each in kinds) else kinds,
            weights_bytes=sum(array.nbytes for _, array in tree_flatten(self.modules.parameters())),
            windows=layer_windows(self.config)[self.cut.layers.start : self.cut.layers.stop],
        )

    def _make_head(self) -> Any:
        """Return the model's own call, which takes hidden states for those of its inner model."""
        setattr(self.whole, _inner_name(self.whole), PassThrough(self.inner))
        if self.cut.is_tied:
            self.whole.model.embed_tokens = self.head
        else:
            self.whole.lm_head = self.head
        return self.whole
