"""The records of hybrid models, some of whose layers have one state a row and no keys and values.

A state (the last inputs of a convolution, a recurrent matrix) stands at exactly the tokens that were stepped:
it cannot be rolled back, nor cut to a prefix. `layer_types` of a config as `read_config` returns it names
every layer's kind; `layer_kinds` says what such a layer caches. Knows nothing of MLX, files or stages.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

from distributed.planning.families.config_types import BadValue
from distributed.planning.families.family import (
    MULTIPLIERS,
    SECTIONS,
    TIED,
    UNITY,
    UNTIED,
    Family,
    make_family,
)
from distributed.planning.families.window_config import SLIDING
from distributed.planning.model_errors import UnsupportedModel

CacheKind = Literal["kv", "state", "window"]  # of all tokens, of a row, of a row's last tokens

_FULL = "full_attention"
# Kinds of layers that cache something else than keys and values alone.
_KINDS: Mapping[str, tuple[CacheKind, ...]] = {
    "linear_attention": ("state",),
    "conv": ("state",),
    "mamba": ("state",),
    "attention": ("kv",),
    "hybrid": ("state", "kv"),
    "mlp": (),
    "moe": (),
}
# Nemotron-H's words for the kinds: in a pattern, and in lists of before transformers 5.13.
_BLOCKS = {"M": "linear_attention", "*": _FULL, "-": "mlp", "E": "moe"}
_BLOCKS |= {"mamba": "linear_attention", "attention": _FULL}
# Granite's class knows these words alone.
_GRANITE_BLOCKS = {"linear_attention": "mamba", _FULL: "attention"}
_INFINITY = {"__float__": "Infinity"}  # as transformers writes it
_FALCON_FACTORS = (
    "attention_in_multiplier attention_out_multiplier embedding_multiplier key_multiplier lm_head_multiplier "
    "ssm_in_multiplier ssm_out_multiplier"
)
_FALCON_UNITY: dict[str, Any] = dict.fromkeys(_FALCON_FACTORS.split(), 1.0)
_DELTA = (
    "linear_num_value_heads linear_num_key_heads linear_key_head_dim linear_value_head_dim "
    "linear_conv_kernel_dim full_attention_interval"
)
_QWEN_EXPERTS = "num_experts num_experts_per_tok moe_intermediate_size shared_expert_intermediate_size"
_DELTA_SIZES: dict[str, Any] = {
    "partial_rotary_factor": 0.25,
    "max_position_embeddings": 32768,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "attention_bias": False,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_value_head_dim": 128,
}
_QWEN3_5 = make_family(
    "qwen3_5",
    f"{_DELTA} head_dim attention_bias partial_rotary_factor",
    {"attn_output_gate": (True,), "output_gate_type": ("swish",)},
    rope_keys=SECTIONS,
    kv="state",
    **_DELTA_SIZES,
)
_QWEN3_5_MOE = make_family(
    "qwen3_5_moe",
    f"{_DELTA} {_QWEN_EXPERTS} head_dim attention_bias partial_rotary_factor",
    {"attn_output_gate": (True,), "norm_topk_prob": (True,), "output_gate_type": ("swish",)},
    rope_keys=SECTIONS,
    kv="state",
    **{**_DELTA_SIZES, "num_key_value_heads": 2},
    num_experts=256,
    num_experts_per_tok=8,
    moe_intermediate_size=512,
    shared_expert_intermediate_size=512,
)
_SHORT_CONV = "norm_eps conv_bias conv_L_cache full_attn_idxs"
_LFM2_NEUTRAL = {**TIED, "tie_embedding": (True,), "block_norm_eps": (1e-5,), "theta": (1e6,)}
_LFM2_SIZES: dict[str, Any] = {
    "norm_eps": 1e-5,
    "rope_theta": 1e6,
    "max_position_embeddings": 128000,
    "num_key_value_heads": 8,
    "conv_bias": False,
    "conv_L_cache": 3,
}

STATEFUL: Mapping[str, Family] = {
    "falcon_h1": make_family(
        "falcon_h1",
        f"{_FALCON_FACTORS} mlp_multipliers ssm_multipliers head_dim mamba_n_heads mamba_d_head "
        "mamba_d_state mamba_d_conv mamba_n_groups mamba_d_ssm mamba_conv_bias mamba_rms_norm "
        "mamba_norm_before_gate",
        {
            "mamba_proj_bias": (False,),
            "mlp_expansion_factor": (8,),
            "projectors_bias": (False,),
            "time_step_limit": (0, math.inf, _INFINITY),
        },
        kv="state",
        rms_norm_eps=1e-5,
        max_position_embeddings=8192,
        num_key_value_heads=8,
        attention_bias=False,
        mlp_bias=False,
        mamba_n_heads=128,
        mamba_d_head=64,
        mamba_d_state=256,
        mamba_d_conv=4,
        mamba_n_groups=1,
        mamba_expand=2,
        mamba_conv_bias=True,
        mamba_proj_bias=False,
        mamba_rms_norm=False,
        mamba_norm_before_gate=True,
        projectors_bias=False,
        **_FALCON_UNITY,
        mlp_multipliers=[1.0] * 2,
        ssm_multipliers=[1.0] * 5,
    ),
    "granitemoehybrid": make_family(
        "granitemoehybrid",
        f"{MULTIPLIERS} attention_bias num_local_experts num_experts_per_tok shared_intermediate_size "
        "mamba_n_heads mamba_d_head mamba_d_state mamba_d_conv mamba_conv_bias mamba_proj_bias "
        "time_step_limit position_embedding_type",
        # With more groups the class norms over all of them at once (mlx_lm 0.32.2).
        {"mamba_n_groups": (1,), "normalization_function": ("rmsnorm",)},
        kv="state",
        embedding_factor="embedding_multiplier",
        max_position_embeddings=2048,
        attention_bias=False,
        num_local_experts=8,
        num_experts_per_tok=2,
        shared_intermediate_size=1024,
        mamba_n_heads=128,
        mamba_d_head=64,
        mamba_d_state=256,
        mamba_d_conv=4,
        mamba_n_groups=1,
        mamba_conv_bias=True,
        mamba_proj_bias=False,
        time_step_limit=[0.0, math.inf],
        position_embedding_type="nope",
        **UNITY,
    ),
    "lfm2": make_family(
        "lfm2",
        f"{_SHORT_CONV} block_dim block_ff_dim block_multiple_of block_ffn_dim_multiplier "
        "block_auto_adjust_ff_dim",
        _LFM2_NEUTRAL,
        kv="state",
        **_LFM2_SIZES,
        block_multiple_of=256,
        block_ffn_dim_multiplier=1.0,
        block_auto_adjust_ff_dim=True,
    ),
    "lfm2_moe": make_family(
        "lfm2_moe",
        f"{_SHORT_CONV} num_experts num_experts_per_tok moe_intermediate_size norm_topk_prob use_expert_bias "
        "num_dense_layers routed_scaling_factor",
        _LFM2_NEUTRAL,
        kv="state",
        **_LFM2_SIZES,
        num_experts=32,
        num_experts_per_tok=4,
        moe_intermediate_size=1792,
        num_dense_layers=2,
        norm_topk_prob=True,
        use_expert_bias=True,
        routed_scaling_factor=1.0,
    ),
    "nemotron_h": make_family(
        "nemotron_h",
        "head_dim attention_bias mlp_bias mamba_num_heads mamba_head_dim mamba_proj_bias ssm_state_size "
        "conv_kernel n_groups layer_norm_epsilon use_conv_bias time_step_limit hybrid_override_pattern "
        "layers_block_type moe_intermediate_size moe_shared_expert_intermediate_size moe_latent_size n_group "
        "topk_group n_routed_experts n_shared_experts num_experts_per_tok norm_topk_prob "
        "routed_scaling_factor",
        {
            **UNTIED,
            "hidden_act": ("relu2",),
            "mamba_hidden_act": ("silu", "swish"),
            "mlp_hidden_act": ("relu2",),
            "norm_eps": (1e-5,),
            "rescale_prenorm_residual": (True, False),
            "residual_in_fp32": (False,),
            "rope_parameters": (),
            "rope_scaling": (),
            "use_bias": (False,),
        },
        kv="state",
        rms_norm_eps=1e-5,
        layer_norm_epsilon=1e-5,
        max_position_embeddings=4096,
        num_key_value_heads=8,
        head_dim=128,
        attention_bias=False,
        mlp_bias=False,
        mamba_num_heads=128,
        mamba_head_dim=64,
        mamba_proj_bias=False,
        ssm_state_size=128,
        conv_kernel=4,
        n_groups=8,
        use_bias=False,
        use_conv_bias=True,
        time_step_limit=[0.0, math.inf],
        moe_intermediate_size=7688,
        moe_shared_expert_intermediate_size=7688,
        n_shared_experts=1,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        norm_topk_prob=True,
        routed_scaling_factor=1.0,
    ),
    "qwen3_5": _QWEN3_5,
    "qwen3_5_moe": _QWEN3_5_MOE,
    "qwen3_5_moe_text": _QWEN3_5_MOE,
    "qwen3_5_text": _QWEN3_5,
    "qwen3_next": make_family(
        "qwen3_next",
        f"{_DELTA} {_QWEN_EXPERTS} head_dim attention_bias partial_rotary_factor norm_topk_prob",
        {"decoder_sparse_step": (1,), "mlp_only_layers": ()},
        kv="state",
        **{**_DELTA_SIZES, "num_key_value_heads": 2},
        num_experts=512,
        num_experts_per_tok=10,
        decoder_sparse_step=1,
        mlp_only_layers=[],
        moe_intermediate_size=512,
        shared_expert_intermediate_size=512,
        norm_topk_prob=True,
    ),
}


def take_layer_types(config: dict[str, Any], family: Family) -> None:
    """Set `layer_types` to the kinds of layers as the class will have them.

    Raises:
        BadValue: keys contradict each other.
        UnsupportedModel: the class cannot have such layers, or has none that attends or none with a state.
    """
    given = config.get("layer_types") or None
    types = _TYPES[family.runs_as](config, given)
    _fix_time_steps(config)
    if len(types) != config["num_hidden_layers"]:
        raise BadValue(
            f"num_hidden_layers is {config['num_hidden_layers']}, but kinds of {len(types)} layers are named"
        )
    for kind in types:
        if kind != _FULL and kind not in _KINDS:
            raise UnsupportedModel(f"layer_types holds {kind!r}; served are {', '.join([_FULL, *_KINDS])}")
    config["layer_types"] = types
    if len({kind for caches in layer_kinds(config) for kind in caches}) < 2:
        raise UnsupportedModel(
            f"no layer attends, or all do (layer_types has {types[0]!r}): served are mixtures"
        )
    if config.get("sliding_window"):
        raise UnsupportedModel(f"sliding_window = {config['sliding_window']} is not served")


def _at_intervals(config: dict[str, Any], given: list[str] | None) -> list[str]:
    """Qwen: every n-th layer attends."""
    first = given.index(_FULL) + 1 if given and _FULL in given else 4
    interval = config.get("full_attention_interval") or first
    numbers = range(1, config["num_hidden_layers"] + 1)
    types = ["linear_attention" if number % interval else _FULL for number in numbers]
    if given and given != types:
        raise UnsupportedModel(
            f"layer_types is not served but with {_FULL} in every layer of a number divisible by "
            f"full_attention_interval = {interval}"
        )
    config["full_attention_interval"] = interval
    return types


def _as_listed(config: dict[str, Any], given: list[str] | None) -> list[str]:
    """LFM2: the layers that attend are listed, by kind or by number."""
    full = config.pop("full_attn_idxs", None)
    types = given
    if full is not None:
        types = [_FULL if number in full else "conv" for number in range(config["num_hidden_layers"])]
    if types is None:
        raise BadValue("there are neither layer_types nor full_attn_idxs")
    if given and [kind == _FULL for kind in given] != [kind == _FULL for kind in types]:
        raise BadValue("layer_types and full_attn_idxs contradict each other")
    if config.setdefault("block_dim", config["hidden_size"]) != config["hidden_size"]:
        raise UnsupportedModel(
            f"block_dim = {config['block_dim']} is not served; hidden_size = {config['hidden_size']} is"
        )
    return types


def _as_patterned(config: dict[str, Any], given: list[str] | None) -> list[str]:
    """Nemotron-H: a letter or a word for each layer."""
    pattern, listed = config.pop("hybrid_override_pattern", None), config.pop("layers_block_type", None)
    if not isinstance(pattern, str | list | None) or not all(isinstance(kind, str) for kind in pattern or ()):
        raise BadValue(f"hybrid_override_pattern = {pattern!r} is not text")
    spelled = [[_BLOCKS.get(kind, kind) for kind in each] for each in (pattern, listed, given) if each]
    if not spelled:
        raise BadValue("there is no hybrid_override_pattern, and no layers_block_type")
    if any(each != spelled[0] for each in spelled):
        raise BadValue("hybrid_override_pattern and layers_block_type contradict each other")
    if (width := config.pop("attention_head_dim", None)) is not None:
        config["head_dim"] = width
    return spelled[0]


def _as_granite_has_them(config: dict[str, Any], given: list[str] | None) -> list[str]:
    """Granite: a word for each layer."""
    if given is None:
        raise BadValue("there are no layer_types")
    has_positions = config["position_embedding_type"] == "rope"  # nothing else, to transformers
    config["position_embedding_type"] = "rope" if has_positions else "nope"
    if not config["num_local_experts"]:
        config["intermediate_size"] = config["shared_intermediate_size"]  # transformers reads no other
    return [_GRANITE_BLOCKS.get(kind, kind) for kind in given]


def _fix_time_steps(config: dict[str, Any]) -> None:
    """Transformers writes infinity as an object, others write what JSON does not allow."""
    limit = config.get("time_step_limit")
    if limit is not None:
        ends = [math.inf if end == _INFINITY else end for end in limit]
        if len(ends) != 2 or not all(isinstance(end, int | float) for end in ends):
            raise BadValue(f"time_step_limit = {limit!r} is not two numbers")
        config["time_step_limit"] = ends


def _both_in_each(config: dict[str, Any], given: list[str] | None) -> list[str]:
    """Falcon-H1: every layer attends and has a state."""
    inner = config["mamba_n_heads"] * config["mamba_d_head"]
    if config.get("mamba_d_ssm") is None:
        config["mamba_d_ssm"] = config["mamba_expand"] * config["hidden_size"]
    if config["mamba_d_ssm"] != inner:
        raise BadValue(f"mamba_d_ssm = {config['mamba_d_ssm']} is not mamba_n_heads x mamba_d_head = {inner}")
    if config["mamba_rms_norm"] and config["mamba_n_groups"] > 1:
        raise UnsupportedModel(
            f"mamba_n_groups = {config['mamba_n_groups']} is not served with mamba_rms_norm"
        )
    for key, count in (("mlp_multipliers", 2), ("ssm_multipliers", 5)):
        if len(config[key]) != count or not all(isinstance(each, int | float) for each in config[key]):
            raise BadValue(f"{key} = {config[key]!r} is not {count} numbers")
    return ["hybrid"] * config["num_hidden_layers"]


_TYPES: Mapping[str, Callable[[dict[str, Any], list[str] | None], list[str]]] = {
    "falcon_h1": _both_in_each,
    "granitemoehybrid": _as_granite_has_them,
    "lfm2": _as_listed,
    "lfm2_moe": _as_listed,
    "nemotron_h": _as_patterned,
    "qwen3_5": _at_intervals,
    "qwen3_5_moe": _at_intervals,
    "qwen3_next": _at_intervals,
}


def layer_kinds(config: Mapping[str, Any]) -> tuple[tuple[CacheKind, ...], ...]:
    """Return what each layer caches, in the order in which its class takes the caches."""
    types = config.get("layer_types") or [_FULL] * config["num_hidden_layers"]
    kinds = {**_KINDS, SLIDING: ("window",)} if config.get("keeps_windows") else _KINDS
    return tuple(kinds.get(kind, ("kv",)) for kind in types)


_MAMBA = ("mamba_n_heads", "mamba_d_head", "mamba_d_state", "mamba_n_groups", "mamba_d_conv")
_NEMOTRON_MAMBA = ("mamba_num_heads", "mamba_head_dim", "ssm_state_size", "n_groups", "conv_kernel")


def state_values(config: Mapping[str, Any]) -> tuple[int, int]:
    """Return the values of a layer's state of one row: in the type of the weights, and always in float32."""
    if "conv_L_cache" in config:
        return (config["conv_L_cache"] - 1) * config["hidden_size"], 0
    for names in (_MAMBA, _NEMOTRON_MAMBA):
        if names[0] in config:
            num_heads, head, size, num_groups, kernel = (config[name] for name in names)
            width = num_heads * head + 2 * num_groups * size
            return (kernel - 1) * width, num_heads * head * size
    keys = config["linear_num_key_heads"] * config["linear_key_head_dim"]
    values = config["linear_num_value_heads"] * config["linear_value_head_dim"]
    window = (config["linear_conv_kernel_dim"] - 1) * (2 * keys + values)
    return window, values * config["linear_key_head_dim"]
