"""Brings a config.json into the one form that the served model classes read, or refuses it.

Transformers 4 and 5, mlx-lm and hand-written files spell the same model differently, and a class of mlx-lm
silently uses its own default for a missing key. So every reader of a config uses this form:

    model_type         a type that mlx-lm has a class for (mistral runs as llama)
    rope_theta         a number, and rope_scaling a dict or None (rope_config.py); ministral3: rope_parameters
    num_key_value_heads, head_dim, num_experts: numbers, never absent where a type has them
    quantization       MLX's own packing or absent
    layer_kv_values    what each layer caches of a token, where layers differ in it
    keeps_windows      absent: model_shape.settle_windows decides it by the context that is served
    layer_types        and sliding_window where a layer has one, else neither (window_config.py)
    tie_word_embeddings   true, false, or absent: then the weights decide (checkpoint.is_tied)

A key that changes numbers and that the served class ignores is refused by name. Knows nothing of MLX or
weights.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from distributed.planning.families.config_types import BadValue, check_types
from distributed.planning.families.expert_config import check_experts, join_expert_counts, place_dense_layers
from distributed.planning.families.family import Family
from distributed.planning.families.gemma4_config import normalise_gemma4
from distributed.planning.families.hybrids import take_layer_types
from distributed.planning.families.layer_config import UNFOLD
from distributed.planning.families.rope_config import normalise_rope
from distributed.planning.families.served import FAMILIES, SERVED_TYPES, WRAPPERS
from distributed.planning.families.window_config import normalise_window
from distributed.planning.model_errors import BadCheckpoint, UnsupportedModel

SIMULATED_TYPE = "simulated"  # distributed/backends/simulated.py: sleeps instead of computing
SCRIPTED_TYPE = "scripted"  # distributed/backends/scripted.py: answers by a script
MADE_UP_TYPES = (SIMULATED_TYPE, SCRIPTED_TYPE)
NEEDED_KEYS = ("model_type", "num_hidden_layers", "hidden_size", "vocab_size", "num_attention_heads")
LATENT_KEYS = ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
QUANTIZATION_MODES = {
    "affine": ((32, 64, 128), (2, 3, 4, 5, 6, 8)),
    "mxfp4": ((32,), (4,)),
    "mxfp8": ((32,), (8,)),
    "nvfp4": ((16,), (4,)),
}
# mlx_lm 0.32.2: a packing, and the classes whose `sanitize` unpacks it.
_UNPACKED_BY: Mapping[str, tuple[str, ...]] = {
    "fp8": ("deepseek_v3", "deepseek_v32", "mimo_v2_flash", "minimax", "ministral3"),
    "compressed-tensors": ("deepseek_v3",),
}
_FOREIGN_PACKINGS = ("quantization_config", "compression_config")
# Words in a key that suggest that it changes numbers, and words in keys that never do.
_NUMBER_WORDS = re.compile(
    r"scal|factor|multiplier|rope|rotary|softcap|capping|window|sliding|alibi|bias|norm|(^|_)act(_|$)|activation|"
    r"temper|logit|resid|attn|attention|rout|gat(e|ing)(_|$)|top_?k|scoring|mask|position|sink|clip|parallel|"
    r"interleave|causal|quantize|kv_shared|(^|_)mup"
)
_HARMLESS_WORDS = re.compile(
    r"dropout|pdrop|drop_?prob|(^|_)loss|jitter|flash|implementation|token_id|_ids?$|logits_to_keep|_range$|"
    r"^output_(router_logits|attentions|hidden_states|scores|logits)$|^transformers"
)
_UNITY_WORDS = re.compile(r"scal|factor|multiplier|temper")


def normalise_config(raw: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the config in the form of the served classes.

    Args:
        where: the file, for error messages.

    Raises:
        BadCheckpoint: a key is missing, of another type, or contradicts another one.
        UnsupportedModel: the model type is not served, or its class ignores a key that changes numbers.
    """
    try:
        check_types(raw)
        raw = _count_layers(_take_text_config(raw))
        family = _find_family(raw)
        if family is None:
            return dict(raw)
        config = _with_defaults(raw, family)
        join_expert_counts(config, family)
        check_experts(config, family)
        if family.runs_as not in UNFOLD:
            place_dense_layers(config, family)
        _check_indexers(config, family)
        _check_heads(config, family)
        if family.runs_as in UNFOLD:
            UNFOLD[family.runs_as](config)
        (take_layer_types if family.kv == "state" else normalise_window)(config, family)
        _take_quantization(config, family)
        if family.runs_as == "gemma4_text":
            normalise_gemma4(config)
        _check_keys(config, family)
        if family.runs_as != "gemma4_text":
            normalise_rope(config, family)
    except BadValue as error:
        raise BadCheckpoint(f"{where}: {error}") from None
    except UnsupportedModel as error:
        raise UnsupportedModel(f"{where}: {error}") from None
    config["model_type"] = family.runs_as
    return config


def tensor_name(stored: str) -> str:
    """Return a tensor's name in a text-only model: some have another prefix, those that see one more."""
    for prefix in ("model.language_model.", "backbone."):
        if stored.startswith(prefix):
            return f"model.{stored.removeprefix(prefix)}"
    return stored.removeprefix("language_model.")


def _take_text_config(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the text model's config of a multimodal model; its quantization stands outside text_config."""
    inner = raw.get("text_config")
    if raw.get("model_type") not in WRAPPERS or not inner:
        return raw
    check_types(inner)
    if inner.get("model_type") not in FAMILIES:
        return raw
    config = dict(inner)
    for key in ("quantization", *_FOREIGN_PACKINGS):
        if raw.get(key):
            config[key] = raw[key]
    config.pop("tie_word_embeddings", None)  # inside and outside may differ: the weights decide
    return config


def _count_layers(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the config with the number of layers, which transformers does not write beside their kinds."""
    listed = raw.get("layers_block_type") or []
    is_missing = listed and raw.get("num_hidden_layers") is None
    return {**raw, "num_hidden_layers": len(listed)} if is_missing else raw


def _find_family(raw: Mapping[str, Any]) -> Family | None:
    """Return the record of the model type; None for made-up models."""
    if raw.get("model_type") is None:
        raise BadValue("there is no model_type: this is not a config of transformers or mlx-lm")
    model_type = raw["model_type"]
    if model_type in MADE_UP_TYPES:
        return None
    if raw.get("model_file"):
        raise UnsupportedModel(
            f"model_file = {raw['model_file']!r}: the model brings its own code, which is never run"
        )
    if model_type not in FAMILIES:
        inner = (raw.get("text_config") or {}).get("model_type")  # as multimodal models have one
        holds = f" (its text_config is of type {inner!r})" if inner else ""
        raise UnsupportedModel(
            f"model type {model_type!r}{holds} is not served; served are {', '.join(SERVED_TYPES)}"
        )
    if raw.get("text_config"):
        raise UnsupportedModel(f"a text_config within a model of type {model_type!r} is not served")
    family = FAMILIES[model_type]
    for key in NEEDED_KEYS:
        if raw.get(key) is None and family.defaults.get(key) is None:
            raise BadValue(f"there is no {key}")
    return family


def _join_spellings(config: dict[str, Any], family: Family) -> None:
    """Give each key that has two names its value under both."""
    for own, usual in family.spellings.items():
        value = config.get(usual) if config.get(own) is None else config[own]
        if config.get(usual) not in (None, value):
            raise BadValue(f"{own} = {value} and {usual} = {config[usual]} contradict each other")
        if value is not None or own in family.defaults:
            config[own] = config[usual] = family.defaults[own] if value is None else value


def _with_defaults(raw: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """Return the config with defaults for absent keys; a null head count or size follows from other keys."""
    config = dict(raw)
    for key in ("layer_kv_values", "keeps_windows"):  # follow from other keys
        config.pop(key, None)
    _join_spellings(config, family)
    for key, value in family.defaults.items():
        if key not in config:
            config[key] = value
        elif config[key] is None and key != "sliding_window":
            config.pop(key)
            if key not in ("num_key_value_heads", "head_dim"):
                config[key] = value
    if config.get("tie_word_embeddings") is None:
        config.pop("tie_word_embeddings", None)
    if config.get("num_key_value_heads") is None:
        config["num_key_value_heads"] = config["num_attention_heads"]
    return config


def _check_heads(config: dict[str, Any], family: Family) -> None:
    """Check that heads divide evenly and rotated sizes are even."""
    width, num_heads = config["hidden_size"], config["num_attention_heads"]
    if family.kv == "latent":
        for key in LATENT_KEYS:
            if config.get(key) is None:
                raise BadValue(f"there is no {key}")
        rotated, name = config["qk_rope_head_dim"], "qk_rope_head_dim"
    else:
        num_kv_heads = config["num_key_value_heads"]
        if num_heads % num_kv_heads:
            raise BadValue(
                f"num_attention_heads = {num_heads} is no multiple of num_key_value_heads = {num_kv_heads}"
            )
        if config.get("head_dim") is None:
            if width % num_heads:
                raise BadValue(f"hidden_size = {width} is no multiple of num_attention_heads = {num_heads}")
            config["head_dim"] = width // num_heads
        rotated, name = config["head_dim"], "head_dim"
        if "head_dim" not in family.honoured and rotated * num_heads != width:
            raise UnsupportedModel(
                f"head_dim = {rotated} is not served; {config['model_type']} is with hidden_size / "
                f"num_attention_heads = {width} / {num_heads}"
            )
    if rotated % 2:
        raise BadValue(f"{name} = {rotated} is odd: rotary embedding turns pairs of values")


def _check_indexers(config: dict[str, Any], family: Family) -> None:
    """Refuse layers that attend to what another layer's indexer selected: it would cross a cut."""
    if "index_topk" not in family.honoured:
        return
    key = next((key for key in ("indexer_types", "index_topk_pattern") if config.get(key)), "index_topk_freq")
    value = config.get(key)
    kinds = value if isinstance(value, str | list) else [value]
    if any(kind not in ("full", "F", None, 0, 1) for kind in kinds):
        raise UnsupportedModel(f"{key} = {_shorten(value)} is not served; an indexer in each layer is")
    for key in ("indexer_types", "index_topk_pattern", "index_topk_freq", "index_skip_topk_offset"):
        config.pop(key, None)
    if set(config.get("layer_types") or ()) == {"indexed_attention"}:
        del config["layer_types"]


def _check_keys(config: Mapping[str, Any], family: Family) -> None:
    """Refuse keys that change numbers and that the served class ignores."""
    for key, value in config.items():
        neutral = family.neutral_values(key)
        if neutral is not None:
            entries = value if isinstance(value, list) else [value]
            if any(entry is not None and entry not in neutral for entry in entries):
                allowed = " or ".join(repr(other) for other in neutral) or "[]"
                raise UnsupportedModel(
                    f"{key} = {_shorten(value)} is not served for {config['model_type']}; {allowed} is"
                )
        elif not family.is_known(key) and _changes_numbers(key, value):
            raise UnsupportedModel(
                f"{key} = {_shorten(value)} is not served: mlx-lm's {config['model_type']} ignores it, and "
                "its name suggests that it changes the model's numbers"
            )


def _changes_numbers(key: str, value: Any) -> bool:
    """Whether an unknown key is on and its name suggests that it changes numbers."""
    if value is None or value is False or value in (0, "", [], {}):
        return False
    name = key.lower()
    if _HARMLESS_WORDS.search(name) or not _NUMBER_WORDS.search(name):
        return False
    return not (_UNITY_WORDS.search(name) and value == 1)


def _take_quantization(config: dict[str, Any], family: Family) -> None:
    """Keep MLX's own packing under `quantization`; refuse any other by name."""
    own = config.get("quantization")
    foreign = next((config[key] for key in _FOREIGN_PACKINGS if config.get(key)), None)
    if not own and isinstance(foreign, Mapping) and {"group_size", "bits"} <= foreign.keys():
        own = foreign if "quant_method" not in foreign else None
    if not own and isinstance(foreign, Mapping) and foreign.get("quant_method") in family.packings:
        own = {"group_size": 32, "bits": 4, "mode": "mxfp4"}
    if not own and foreign:
        method = foreign.get("quant_method") or foreign.get("quant_algo") or "another program"
        origin = "these" if family.runs_as in _UNPACKED_BY.get(str(method), ()) else "plain weights"
        raise UnsupportedModel(
            f"weights packed by {method} (quantization_config) are not served; served are plain weights and "
            f"MLX's own packing (quantization), which `mlx_lm.convert --hf-path … -q` makes from {origin}"
        )
    for key in ("quantization", *_FOREIGN_PACKINGS):
        config.pop(key, None)
    if own:
        for path, entry in [("quantization", own), *own.items()]:
            if isinstance(entry, Mapping):
                _check_packing(path, entry, own)
        config["quantization"] = {tensor_name(path): entry for path, entry in own.items()}


def _check_packing(path: str, entry: Mapping[str, Any], whole: Mapping[str, Any]) -> None:
    """Check bits and group size of the whole model or of one module."""
    mode = str(entry.get("mode", "affine"))  # a module's entry inherits none (mlx 0.32.4 nn.quantize)
    if mode not in QUANTIZATION_MODES:
        raise UnsupportedModel(
            f"quantization mode {mode!r} ({path}) is not served; served are {', '.join(QUANTIZATION_MODES)}"
        )
    for key, allowed in zip(("group_size", "bits"), QUANTIZATION_MODES[mode], strict=True):
        value = entry.get(key, None if entry is whole else whole.get(key))
        if isinstance(value, bool) or value not in allowed:
            numbers = ", ".join(str(number) for number in allowed)
            raise BadValue(f"{key} = {value!r} of {path} is not one of {numbers} (mode {mode})")


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
