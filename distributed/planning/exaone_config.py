"""Brings K-EXAONE's placing of dense layers into the form of mlx-lm's class. Knows nothing of MLX."""

from __future__ import annotations

from typing import Any

from distributed.planning.config_types import BadValue


def place_experts(config: dict[str, Any]) -> None:
    """Name which layers have experts, by whichever key tells it.

    Raises:
        BadValue: a list is not of the layers' kinds.
    """
    num_layers, kinds = config["num_hidden_layers"], config.pop("mlp_layer_types", None)
    if config.get("is_moe_layer") is None:
        if kinds is None:
            first = config["first_k_dense_replace"]
            kinds = ["dense" if i < first else "sparse" for i in range(num_layers)]
        if not isinstance(kinds, list) or any(kind not in ("dense", "sparse") for kind in kinds):
            raise BadValue(f"mlp_layer_types = {kinds!r} is not a list of dense and sparse")
        config["is_moe_layer"] = [kind == "sparse" for kind in kinds]
    places = config["is_moe_layer"]
    if not isinstance(places, list) or len(places) != num_layers:
        raise BadValue(f"is_moe_layer = {places!r} is not a list for {num_layers} layers")
