"""Completes what Muse Glimmer's config.json says of single layers. Knows nothing of MLX."""

from __future__ import annotations

from typing import Any

from distributed.planning.config_types import BadValue
from distributed.planning.model_errors import UnsupportedModel
from distributed.planning.window_config import FULL, SLIDING


def unfold_glimmer(config: dict[str, Any]) -> None:
    """Name each layer's kind, and its theta; 0: its positions are not rotated.

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
