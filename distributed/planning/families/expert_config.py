"""Brings a config.json's keys of experts into the form of the served classes, or refuses them.

The number of routed experts stands under the name that the class reads, and which layers are dense in
first_k_dense_replace. Knows nothing of MLX or weights.
"""

from __future__ import annotations

from typing import Any

from distributed.planning.families.config_types import BadValue
from distributed.planning.families.family import EXPERT_COUNTS, Family, count_experts
from distributed.planning.model_errors import UnsupportedModel

TOPK_METHODS = ("greedy", "group_limited_greedy")


def join_expert_counts(config: dict[str, Any], family: Family) -> None:
    """Keep the number of routed experts under the key that the class reads."""
    name = family.expert_count
    if name is None:
        return
    is_default = config.get(name) == family.defaults.get(name)
    for other in EXPERT_COUNTS:
        if other == name or config.get(other) is None:
            continue
        count = config.pop(other)
        if not is_default and config.get(name) not in (None, count):
            raise BadValue(f"{name} = {config[name]} and {other} = {count} contradict each other")
        config[name] = count
    for key in (name, "n_shared_experts"):
        if config.get(key) == 0 and name == "n_routed_experts":
            config[key] = None  # mlx_lm 0.32.2 deepseek_v2: None is none, 0 is a layer of width 0


def check_experts(config: dict[str, Any], family: Family) -> None:
    """Check the numbers of experts and of their groups; a choice among all groups needs no groups."""
    count = count_experts(config)
    if not count or family.expert_count is None:
        return
    chosen = config.get("num_experts_per_tok")
    if not chosen:
        raise BadValue(f"there is no num_experts_per_tok, but there are {count} experts")
    if chosen > count:
        raise BadValue(f"num_experts_per_tok = {chosen}, but there are {count} experts")
    if not _has_groups(config, family):
        return
    groups, num_groups = config["n_group"], config["topk_group"]
    if not groups or not num_groups or count % groups or num_groups > groups:
        raise BadValue(
            f"n_group = {groups} does not divide {count} experts, or topk_group = {num_groups} is not up to "
            "it"
        )
    in_group = count // groups
    if "topk_method" not in family.honoured and (in_group < 2 or chosen > num_groups * in_group):
        raise BadValue(
            f"groups of {in_group} experts (n_group = {groups}) are too small for topk_group = {num_groups} "
            f"and num_experts_per_tok = {chosen}"
        )


def _has_groups(config: dict[str, Any], family: Family) -> bool:
    """Whether experts are chosen within some of their groups.

    Raises:
        UnsupportedModel: they are chosen in a way that the class does not know.
    """
    groups, chosen = config.get("n_group"), config.get("topk_group")
    if "topk_method" in family.honoured:
        method = config.get("topk_method")
        if method not in TOPK_METHODS:
            raise UnsupportedModel(
                f"topk_method = {method!r} is not served; served are {', '.join(TOPK_METHODS)}"
            )
        if method == "group_limited_greedy" and groups == chosen:
            config["topk_method"] = method = "greedy"
        return bool(method == "group_limited_greedy")
    if "n_group" in family.honoured and groups == chosen and groups:
        config["n_group"] = config["topk_group"] = 1
    return "n_group" in family.honoured and (groups, chosen) != (1, 1)


def place_dense_layers(config: dict[str, Any], family: Family) -> None:
    """Turn mlp_layer_types, as transformers writes it, into first_k_dense_replace.

    Raises:
        BadValue: they contradict each other.
        UnsupportedModel: dense layers lie behind ones with experts.
    """
    kinds = config.get("mlp_layer_types")
    if "first_k_dense_replace" not in family.honoured or not kinds:
        return
    num_layers, num_dense = config["num_hidden_layers"], kinds.count("dense")
    if len(kinds) != num_layers:
        raise BadValue(f"mlp_layer_types names {len(kinds)} layers, num_hidden_layers is {num_layers}")
    if kinds != ["dense"] * num_dense + ["sparse"] * (num_layers - num_dense):
        raise UnsupportedModel("mlp_layer_types is not served unless all dense layers come first")
    if config.get("moe_layer_freq") not in (None, 1):
        raise BadValue(
            f"mlp_layer_types and moe_layer_freq = {config['moe_layer_freq']} contradict each other"
        )
    del config["mlp_layer_types"]
    config["first_k_dense_replace"] = num_dense
