"""Brings what Step 3.5's config.json lists layer by layer into the form of other models.

Its lists may go on behind the last layer: for layers that predict more tokens, which are not served. Sliding
layers rotate by a theta of their own, without scaling. Knows nothing of MLX.
"""

from __future__ import annotations

from typing import Any

from distributed.planning.families.config_types import BadValue, check_number, check_share
from distributed.planning.families.window_config import FULL, SLIDING
from distributed.planning.model_errors import UnsupportedModel

_LISTS = ("layer_types", "partial_rotary_factors", "rope_theta")


def unfold_step(config: dict[str, Any]) -> None:
    """Shorten lists to the layers, and name one theta for each kind of layer.

    Raises:
        BadValue: a list is too short, or holds what it must not.
        UnsupportedModel: layers of one kind differ.
    """
    num_layers = config["num_hidden_layers"]
    config.setdefault("num_attention_groups", config["num_key_value_heads"])
    for key in _LISTS:
        if isinstance(config.get(key), list):
            if len(config[key]) < num_layers:
                raise BadValue(f"{key} names {len(config[key])} layers, num_hidden_layers is {num_layers}")
            config[key] = config[key][:num_layers]
    kinds = config.get("layer_types")
    if not kinds:
        raise BadValue("there are no layer_types")
    _check_rotations(config)
    theta = config["rope_theta"]
    if isinstance(theta, list):
        config["local_rope_theta"] = _common(theta, kinds, SLIDING)
        config["rope_theta"] = _common(theta, kinds, FULL)
    config.setdefault("local_rope_theta", config["rope_theta"])
    scaled, ropes = config.get("yarn_only_types"), (config.get("rope_scaling"), config.get("rope_parameters"))
    has_scaling = any((rope or {}).get("factor") for rope in ropes)
    if scaled not in (None, [], [FULL]) or (not scaled and has_scaling):
        raise UnsupportedModel(f"yarn_only_types = {scaled!r} is not served; {[FULL]} is")
    _check_other_heads(config)


def _check_rotations(config: dict[str, Any]) -> None:
    """Check each layer's theta, and its share of rotated values."""
    for key in ("partial_rotary_factors", "rope_theta"):
        values = config.get(key)
        for value in values if isinstance(values, list) else []:
            if value is None:
                raise BadValue(f"{key} = {values} has no number for a layer")
            check_number(key, value)
            if key == "partial_rotary_factors":
                check_share(key, value, config["head_dim"])


def _common(values: list[float], kinds: list[str], kind: str) -> float:
    """Return the value that all layers of a kind have."""
    found = {value for value, other in zip(values, kinds, strict=True) if other == kind}
    if len(found) > 1:
        raise UnsupportedModel(f"layers of type {kind!r} with rope_theta = {sorted(found)} are not served")
    return found.pop() if found else values[0]


def _check_other_heads(config: dict[str, Any]) -> None:
    """Check the heads of sliding layers: as many keys and values as in others, of the same size."""
    other = config.get("attention_other_setting")
    if not other:
        return
    if not isinstance(other, dict):
        raise BadValue(f"attention_other_setting = {other!r} is not an object")
    wanted = {
        "attention_type": SLIDING,
        "head_dim": config["head_dim"],
        "num_attention_groups": config["num_attention_groups"],
    }
    for key, value in wanted.items():
        if other.get(key, value) != value:
            raise UnsupportedModel(
                f"attention_other_setting with {key} = {other[key]!r} is not served; {value!r} is"
            )
    heads, groups = other.get("num_attention_heads"), config["num_attention_groups"]
    if not isinstance(heads, int) or heads < 1 or heads % groups:
        raise BadValue(
            f"num_attention_heads = {heads!r} of attention_other_setting is no multiple of "
            f"num_attention_groups = {groups}"
        )
    config["attention_other_setting"] = {**other, "num_attention_groups": groups}
