"""Brings keys of single layers in config.json into the form of mlx-lm's classes and of other models.

Which layers have experts, what kind each is, how it rotates, how many heads it has. Knows nothing of MLX.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from distributed.planning.families.config_types import BadValue, check_integer
from distributed.planning.families.step_config import unfold_step
from distributed.planning.families.window_config import FULL, SLIDING
from distributed.planning.model_errors import UnsupportedModel

_FEEDS = DENSE, SPARSE = "dense", "sparse"
# MiMo's keys of full layers; those of sliding layers begin with swa_.
_SIZES = ("num_attention_heads", "num_key_value_heads", "head_dim", "v_head_dim")


def unfold_exaone(config: dict[str, Any]) -> None:
    """Name which layers of K-EXAONE have experts, by whichever key tells it.

    Raises:
        BadValue: a list is not of the layers' kinds.
    """
    num_layers, kinds = config["num_hidden_layers"], config.pop("mlp_layer_types", None)
    if config.get("is_moe_layer") is None:
        if kinds is None:
            first = config["first_k_dense_replace"]
            kinds = [DENSE if i < first else SPARSE for i in range(num_layers)]
        if not isinstance(kinds, list) or any(kind not in _FEEDS for kind in kinds):
            raise BadValue(f"mlp_layer_types = {kinds!r} is not a list of dense and sparse")
        config["is_moe_layer"] = [kind == SPARSE for kind in kinds]
    places = config["is_moe_layer"]
    if not isinstance(places, list) or len(places) != num_layers:
        raise BadValue(f"is_moe_layer = {places!r} is not a list for {num_layers} layers")


def unfold_glimmer(config: dict[str, Any]) -> None:
    """Name the kind of each layer of Muse Glimmer, and its theta; 0: its positions are not rotated.

    Raises:
        BadValue: a list is of another length, or holds what it must not.
        UnsupportedModel: layers rotate unlike each other.
    """
    num_layers = config["num_hidden_layers"]
    every_fourth = [(num_layers - 1 - i) % 4 == 0 for i in range(num_layers)]  # from the last on
    if not config.get("layer_types"):
        config["layer_types"] = [FULL if is_full else SLIDING for is_full in every_fourth]
    theta = (config.get("rope_parameters") or {}).get("rope_theta") or config["rope_theta"]
    thetas = config.get("layer_rope_theta") or [0 if is_full else theta for is_full in every_fourth]
    if not isinstance(thetas, list) or len(thetas) != num_layers:
        raise BadValue(f"layer_rope_theta = {thetas!r} is not a list for {num_layers} layers")
    if any(each not in (0, theta) for each in thetas):
        raise UnsupportedModel(f"layer_rope_theta = {thetas!r} is not served; 0 and {theta!r} are")
    config["layer_rope_theta"] = thetas


def unfold_laguna(config: dict[str, Any]) -> None:
    """Name which layers of Laguna have experts, and each layer's heads.

    Raises:
        BadValue: a list is of another length, or holds what it must not, or two contradict each other.
    """
    numbers = range(config["num_hidden_layers"])
    dense = config.pop("mlp_only_layers", None)
    by_number = [DENSE if i in (dense if dense is not None else (0,)) else SPARSE for i in numbers]
    kinds = config.get("mlp_layer_types") or by_number
    heads = config.get("num_attention_heads_per_layer") or [config["num_attention_heads"]] * len(numbers)
    for key, values in (("mlp_layer_types", kinds), ("num_attention_heads_per_layer", heads)):
        if not isinstance(values, list) or len(values) != len(numbers):
            raise BadValue(f"{key} = {values!r} is not a list for {len(numbers)} layers")
        config[key] = values
    if any(kind not in _FEEDS for kind in kinds) or (dense is not None and kinds != by_number):
        raise BadValue(f"mlp_layer_types = {kinds!r} is not of {_FEEDS}, or mlp_only_layers contradicts it")
    groups = config["num_key_value_heads"]
    if any(not isinstance(num, int) or num < 1 or num % groups for num in heads):
        raise BadValue(f"num_attention_heads_per_layer = {heads!r} is not of multiples of {groups}")


def unfold_mimo(config: dict[str, Any]) -> None:
    """Name the kind of each layer of MiMo-V2-Flash, and what it caches.

    Raises:
        BadValue: a key is missing, of another type, or contradicts another one.
    """
    num_layers, pattern = config["num_hidden_layers"], config.get("hybrid_layer_pattern")
    for key in ("hybrid_layer_pattern", "moe_layer_freq"):
        value = config.get(key)
        is_list = isinstance(value, list) and len(value) == num_layers
        if not is_list or any(entry not in (0, 1) for entry in value or ()):
            raise BadValue(f"{key} = {value!r} is not a list of 0 and 1 for {num_layers} layers")
    assert isinstance(pattern, list)
    kinds = [SLIDING if is_sliding else FULL for is_sliding in pattern]
    if config.get("layer_types") not in (None, kinds):
        raise BadValue("layer_types and hybrid_layer_pattern contradict each other")
    config["layer_types"] = kinds
    values = {}
    for kind, prefix in ((FULL, ""), (SLIDING, "swa_")):
        for key in _SIZES:
            config.setdefault(prefix + key, config.get(key))
            check_integer(prefix + key, config[prefix + key] or 0, 1)
        heads, groups, width, value_width = (config[prefix + key] for key in _SIZES)
        rotated = int(config["partial_rotary_factor"] * width)
        if heads % groups or rotated % 2:
            raise BadValue(f"{kind} has {heads} heads for {groups} of keys, and turns {rotated} values")
        values[kind] = groups * (width + value_width)
    config["layer_kv_values"] = [values[kind] for kind in kinds]


UNFOLD: Mapping[str, Callable[[dict[str, Any]], None]] = MappingProxyType(
    {
        "exaone_moe": unfold_exaone,
        "laguna": unfold_laguna,
        "mimo_v2_flash": unfold_mimo,
        "muse_glimmer": unfold_glimmer,
        "step3p5": unfold_step,
    }
)
