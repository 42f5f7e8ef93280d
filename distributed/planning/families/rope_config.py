"""Brings the rotary embedding of a config.json into the form that mlx-lm's classes read.

Transformers 5 writes `rope_parameters {rope_theta, rope_type, …}`, transformers 4 and mlx-lm `rope_theta` and
`rope_scaling {type or rope_type, …}`. The result is `rope_theta` and `rope_scaling`, which is None for plain
RoPE; for ministral3, whose class reads nothing else, `rope_parameters`. A family whose sliding layers rotate
by themselves may have rope_parameters for each type of layer: `rope_scaling` is then that of the others. The
meaning of each key is that of transformers 5.24 modeling_rope_utils.py. Knows nothing of MLX.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from distributed.planning.families.config_types import BadValue, check_integer, check_number, check_share
from distributed.planning.families.family import ROPE_TYPES, Family
from distributed.planning.families.window_config import FULL, KINDS, SLIDING
from distributed.planning.model_errors import UnsupportedModel

# rope type -> keys beyond rope_theta that mlx-lm's rope_utils follows (mlx_lm 0.32.2), and truncate, which
# models/general.py does.
_FOLLOWED = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": (
        "factor",
        "original_max_position_embeddings",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "truncate",
    ),
}
_SCALING_KEYS = {key for keys in _FOLLOWED.values() for key in keys}
_NEEDED = {"linear": ("factor",), "llama3": ("factor", "low_freq_factor", "high_freq_factor")}
# Keys that are not followed -> values that change nothing; None: any value.
_NEUTRAL: Mapping[str, tuple[Any, ...] | None] = {
    "rope_type": None,
    "rope_theta": None,
    "max_position_embeddings": None,
    "finetuned": None,
    "partial_rotary_factor": (1.0,),
    "llama_4_scaling_beta": (0,),
    "attention_factor": (1.0,),
    "extrapolation_factor": (1.0,),
    "attn_factor": (1.0,),
}


_REPLACED = ("rope_parameters", "rope_scaling", "rope_theta", "original_max_position_embeddings")
_LOCAL_SHARE = "local_partial_rotary_factor"


def normalise_rope(config: dict[str, Any], family: Family) -> None:
    """Replace the config's keys of the rotary embedding by the form above.

    Raises:
        BadValue: values are missing or contradict each other.
        UnsupportedModel: the served classes do not follow a type of scaling, or one of its keys.
    """
    if family.local_theta is not None:
        check_number(family.local_theta, config.get(family.local_theta))
        _take_apart(config, family.local_theta, has_own_share=_LOCAL_SHARE in family.honoured)
    given = _collect(config)
    theta = given.get("rope_theta") or config["rope_theta"]
    check_number("rope_theta", theta)
    kind = str(given.get("rope_type", "default"))
    if kind == "mrope" and "mrope_section" in family.rope_keys:
        kind = "default"
    if kind == "dynamic" and given.get("alpha") and "alpha" in family.rope_keys:
        check_number("alpha", given["alpha"])
        num_values = max(4, config["head_dim"])
        theta, kind = theta * given["alpha"] ** (num_values / (num_values - 2)), "default"
    if kind not in ROPE_TYPES:
        raise UnsupportedModel(
            f"{_name(config)} of type {kind!r} is not served; served are {', '.join(ROPE_TYPES)}"
        )
    _check_keys(given, kind, config, family)
    scaling = _make_scaling(given, kind, config, family)
    factor = given.get("partial_rotary_factor", config.get("partial_rotary_factor") or 1.0)
    for key in (*_REPLACED, "partial_rotary_factor"):
        config.pop(key, None)
    if "partial_rotary_factor" in family.honoured:
        check_share("partial_rotary_factor", factor, config["head_dim"])
        config["partial_rotary_factor"] = factor
    if "rotary_dim" in family.honoured and config.get("rotary_dim") is None:
        config["rotary_dim"] = int(config["head_dim"] * config["partial_rotary_factor"])
    if family.runs_as == "ministral3":
        config["rope_parameters"] = {
            **_parameters_of_ministral3(scaling, given, config),
            "rope_theta": float(theta),
        }
        return
    config["rope_theta"] = float(theta)
    config["rope_scaling"] = scaling if kind != "default" else None
    if "rope_parameters" in family.honoured:  # by type of layer
        keys = [key for key in ("rope_theta", "partial_rotary_factor") if f"local_{key}" in config]
        config["rope_parameters"] = {
            FULL: {key: config[key] for key in keys},
            SLIDING: {key: config[f"local_{key}"] for key in keys},
        }


def _parameters_of_ministral3(
    scaling: Mapping[str, Any], given: Mapping[str, Any], config: Mapping[str, Any]
) -> dict[str, Any]:
    key = "original_max_position_embeddings"
    return {
        **scaling,
        "llama_4_scaling_beta": float(given.get("llama_4_scaling_beta") or 0.0),
        key: scaling.get(key) or given.get(key) or config["max_position_embeddings"],
    }


def _take_apart(config: dict[str, Any], local_theta: str, *, has_own_share: bool) -> None:
    """Leave the rope_parameters of full layers; those of sliding layers are a theta."""
    given = config.get("rope_parameters") or {}
    if not isinstance(given.get(FULL), Mapping) or not isinstance(given.get(SLIDING, {}), Mapping):
        return
    local = {key: value for key, value in given.get(SLIDING, {}).items() if value is not None}
    if local.pop("rope_type", "default") != "default":
        raise UnsupportedModel(f"scaled rotations in layers of type {SLIDING!r} are not served")
    theta = local.pop("rope_theta", config[local_theta])
    share = local.pop("partial_rotary_factor", None)
    check_number("partial_rotary_factor", share)
    if has_own_share:
        config[_LOCAL_SHARE] = share or 1.0
        check_share("partial_rotary_factor", config[_LOCAL_SHARE], config["head_dim"])
    elif share != given[FULL].get("partial_rotary_factor"):
        raise UnsupportedModel("a partial_rotary_factor for each type of layer is not served")
    check_number("rope_theta", theta)
    if local or given.keys() - KINDS:
        raise UnsupportedModel(f"{min(local.keys() | given.keys() - KINDS)} in rope_parameters is not served")
    config["rope_parameters"] = dict(given[FULL])
    if local_theta == "rope_theta":
        config["rope_parameters"].setdefault("rope_theta", config["rope_theta"])
        if config["rope_parameters"]["rope_theta"] != theta:
            raise UnsupportedModel("a rope_theta for each type of layer is not served")
    else:
        config[local_theta] = theta


def _collect(config: Mapping[str, Any]) -> dict[str, Any]:
    """Collect all keys of the rotary embedding in one dict; null means absent."""
    if config["model_type"] in ("gpt_oss", "ministral3") and not (
        config.get("rope_parameters") or config.get("rope_scaling")
    ):
        raise BadValue("there are no rope_parameters")
    given: dict[str, Any] = {}
    for source in (config.get("rope_parameters") or {}, config.get("rope_scaling") or {}):
        named = {"rope_type": source.get("type"), **{key: source[key] for key in source if key != "type"}}
        for key, value in named.items():
            if isinstance(value, Mapping):
                raise UnsupportedModel(
                    f"{_name(config)} differs by type of layer ({key!r}); only one for all layers is served"
                )
            if value is None:
                continue
            if given.get(key, value) != value:
                raise BadValue(f"rope_parameters and rope_scaling contradict each other in {key}")
            given[key] = value
    # Transformers reads this key of the config itself first (standardize_rope_params).
    if config.get("original_max_position_embeddings"):
        given["original_max_position_embeddings"] = config["original_max_position_embeddings"]
    if config.get("partial_rotary_factor") is not None:
        given.setdefault("partial_rotary_factor", config["partial_rotary_factor"])
    return given


def _check_keys(given: Mapping[str, Any], kind: str, config: Mapping[str, Any], family: Family) -> None:
    followed = {*_FOLLOWED[kind], *family.rope_keys, *(family.honoured & {"partial_rotary_factor"})}
    if kind == "yarn":
        followed.add("attention_factor")
    for key, value in given.items():
        if key == "original_max_position_embeddings":
            check_integer(key, value, 1)
        elif key.startswith(("mscale", "beta_")):
            check_number(key, value or None)
        elif key.endswith("factor"):
            check_number(key, value)
        elif key == "truncate" and value is not True and (value or family.runs_as == "ministral3"):
            raise UnsupportedModel(f"truncate = {value!r} of {_name(config)} is not served; True is")
        # Plain RoPE ignores the keys of a scaling.
        if key in followed or (kind == "default" and key in _SCALING_KEYS):
            continue
        neutral = _NEUTRAL.get(key, ())
        if neutral is not None and value not in neutral:
            instead = f"; {neutral[0]} is" if neutral else ""
            raise UnsupportedModel(
                f"{key} = {value!r} of {_name(config)} is not served with type {kind!r}{instead}"
            )


def _make_scaling(
    given: Mapping[str, Any], kind: str, config: Mapping[str, Any], family: Family
) -> dict[str, Any]:
    """Return the scaling for mlx-lm: every key that the type follows, with transformers' defaults."""
    for key in _NEEDED.get(kind, ()):
        if key not in given:
            raise BadValue(f"{_name(config)} of type {kind!r} has no {key}")
    scaling = {key: given[key] for key in _FOLLOWED[kind] if key in given}
    if "original_max_position_embeddings" in _FOLLOWED[kind]:
        scaling.setdefault("original_max_position_embeddings", config["max_position_embeddings"])
    if kind == "yarn":
        _complete_yarn(scaling, given, config, has_latent=family.kv == "latent")
    if kind == "llama3" and scaling["low_freq_factor"] >= scaling["high_freq_factor"]:
        raise BadValue(f"low_freq_factor of {_name(config)} is not below its high_freq_factor")
    return {"type": kind, "rope_type": kind, **scaling}


def _complete_yarn(
    scaling: dict[str, Any], given: Mapping[str, Any], config: Mapping[str, Any], *, has_latent: bool
) -> None:
    """Set mscale and mscale_all_dim so that mlx-lm scales as transformers does.

    mlx-lm multiplies queries and keys by m(mscale) / m(mscale_all_dim), where m(s) = 0.1 s ln(factor) + 1,
    mscale is 1 and mscale_all_dim 0 by default. Transformers multiplies by attention_factor; without it by
    the same quotient if both are given, else by m(1).
    """
    original = scaling["original_max_position_embeddings"]
    factor = scaling.setdefault("factor", config["max_position_embeddings"] / original)
    for key in ("beta_fast", "beta_slow"):
        if not scaling.get(key):
            scaling.pop(key, None)
    if scaling.get("truncate"):
        del scaling["truncate"]
    mscale, all_dim = scaling.get("mscale"), scaling.get("mscale_all_dim")
    wanted = given.get("attention_factor")
    if wanted is None:
        if mscale and all_dim:
            return
        # DeepSeek's own code and transformers differ if only one is given.
        if has_latent and (all_dim or mscale not in (None, 0, 1)):
            raise UnsupportedModel(
                f"{_name(config)} with one of mscale and mscale_all_dim alone is not served"
            )
        scaling |= {"mscale": 1.0, "mscale_all_dim": 0.0}
        return
    if (has_latent and all_dim) or (factor <= 1 and wanted != 1):
        raise UnsupportedModel(
            f"attention_factor = {wanted!r} of {_name(config)} is not served with factor = {factor} and "
            f"mscale_all_dim = {all_dim}"
        )
    scaling |= {
        "mscale": (wanted - 1) / (0.1 * math.log(factor)) if factor > 1 else 1.0,
        "mscale_all_dim": 0.0,
    }


def _name(config: Mapping[str, Any]) -> str:
    return "rope_parameters" if config.get("rope_parameters") else "rope_scaling"
