"""Checks what Laguna's config.json says of single layers. Knows nothing of MLX."""

from __future__ import annotations

from typing import Any

from distributed.planning.config_types import BadValue

_KINDS = DENSE, SPARSE = "dense", "sparse"


def unfold_laguna(config: dict[str, Any]) -> None:
    """Name which layers have experts, and each layer's heads.

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
    if any(kind not in _KINDS for kind in kinds) or (dense is not None and kinds != by_number):
        raise BadValue(f"mlp_layer_types = {kinds!r} is not of {_KINDS}, or mlp_only_layers contradicts it")
    groups = config["num_key_value_heads"]
    if any(not isinstance(num, int) or num < 1 or num % groups for num in heads):
        raise BadValue(f"num_attention_heads_per_layer = {heads!r} is not of multiples of {groups}")
