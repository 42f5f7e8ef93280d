"""Brings what MiMo-V2-Flash's config.json says of its two kinds of layers into the form of other models.

Full and sliding layers have other numbers of heads, and heads of other widths. Knows nothing of MLX.
"""

from __future__ import annotations

from typing import Any

from distributed.planning.config_types import BadValue, check_integer
from distributed.planning.window_config import FULL, SLIDING

# Keys of full layers; those of sliding layers begin with swa_.
_SIZES = ("num_attention_heads", "num_key_value_heads", "head_dim", "v_head_dim")


def unfold_mimo(config: dict[str, Any]) -> None:
    """Name each layer's kind and what it caches.

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
