"""Brings what Gemma 4's config.json says of its two kinds of layers into the form of mlx-lm's class.

Full layers have heads of another width, and where keys are values another number of them. Each kind rotates
by itself: full layers by a share of each head. Knows nothing of MLX.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distributed.planning.families.config_types import BadValue, check_integer, check_number
from distributed.planning.families.window_config import FULL, KINDS, SLIDING
from distributed.planning.model_errors import UnsupportedModel

_DEFAULT_ROPES = {
    SLIDING: {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0},
    FULL: {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25},
}


def normalise_gemma4(config: dict[str, Any]) -> None:
    """Name the heads of full layers and the rotations of both kinds; `layer_types` must be normal.

    Raises:
        BadValue: values are missing, of another type, or contradict each other.
        UnsupportedModel: layers of one kind differ, or rotate in another way.
    """
    _take_layers(config)
    if config.get("global_head_dim") is None:
        config["global_head_dim"] = 512
    for key in ("global_head_dim", "num_global_key_value_heads"):
        check_integer(key, config.get(key), 1)
    given = config.get("rope_parameters") or _DEFAULT_ROPES
    config["rope_parameters"] = {kind: _rope(given.get(kind), kind) for kind in KINDS}
    config["rope_scaling"] = None
    heads = config["num_key_value_heads"]
    others = config.get("num_global_key_value_heads") if config.get("attention_k_eq_v") else None
    values = {SLIDING: heads * config["head_dim"], FULL: (others or heads) * config["global_head_dim"]}
    config["layer_kv_values"] = [2 * values[kind] for kind in config["layer_types"]]


def _take_layers(config: dict[str, Any]) -> None:
    """Replace per_layer_config, as transformers 5 writes it, by the sizes of full layers."""
    given = config.pop("per_layer_config", None)
    if given is None:
        return
    kinds = config["layer_types"]
    if not isinstance(given, Mapping) or not all(isinstance(entry, Mapping) for entry in given.values()):
        raise BadValue(f"per_layer_config = {given!r} is not an object of objects")
    of_layer = {int(number): entry for number, entry in given.items() if number.isdecimal()}
    full = {i for i, kind in enumerate(kinds) if kind == FULL}
    entries = [of_layer.get(number, {}) for number in full]
    if of_layer.keys() != full or any(entry != entries[0] for entry in entries):
        raise UnsupportedModel("a per_layer_config that differs between layers of one type is not served")
    sizes = {"head_dim": "global_head_dim", "num_key_value_heads": "num_global_key_value_heads"}
    if others := entries[0].keys() - sizes:
        raise UnsupportedModel(f"{min(others)} in per_layer_config is not served")
    config |= {sizes[key]: value for key, value in entries[0].items()}


def _rope(given: Any, kind: str) -> dict[str, Any]:
    """Return the rotation of a kind of layers, complete."""
    if not isinstance(given, Mapping):
        raise BadValue(f"rope_parameters have no {kind}")
    rope = _DEFAULT_ROPES[kind] | {key: value for key, value in given.items() if value is not None}
    for key in ("rope_theta", "partial_rotary_factor"):
        check_number(key, rope[key])
    for key, value in rope.items():
        is_free = key == "rope_theta" or (key == "partial_rotary_factor" and kind == FULL)
        if not is_free and value != _DEFAULT_ROPES[kind].get(key):
            raise UnsupportedModel(f"{key} = {value!r} of {kind} in rope_parameters is not served")
    return rope
