"""A tiny config of each served type, with the options that its class follows.

Sizes of heads, experts and rotations are unlike each other,
so that one taken for another shows.
"""

from __future__ import annotations

from typing import Any

from distributed.planning.families.served import FAMILIES
from distributed.self_test.seeded_models import COMMON, FAMILY_CONFIGS
from tests.fakes.deepseek_configs import DEEPSEEK_CONFIGS
from tests.fakes.state_configs import STATEFUL_CONFIGS
from tests.fakes.window_configs import WINDOW_BEYOND

_KV = {"num_key_value_heads": 2}
_BIASES = {"attention_bias": True, "mlp_bias": True}
_MULTIPLIERS = {
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.3,
    "residual_multiplier": 0.7,
    "logits_scaling": 0.5,
}
_DEEPSEEK_EXPERTS = {
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "n_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": 1.5,
    "norm_topk_prob": True,
}
_LOCAL_EXPERTS = {"num_local_experts": 8, "num_experts_per_tok": 2}
_GLM4_MOE = {
    **_DEEPSEEK_EXPERTS,
    "head_dim": 32,
    "attention_bias": True,
    "use_qk_norm": True,
    "partial_rotary_factor": 0.5,
    "rope_scaling": None,
}
_MINIMAX = {**_LOCAL_EXPERTS, "head_dim": 32, "rotary_dim": 16, "use_qk_norm": True} | {
    "shared_intermediate_size": 0
}

# What differs from COMMON and from two KV heads.
_BEYOND: dict[str, dict[str, Any]] = {
    **WINDOW_BEYOND,
    "apertus": {
        **_BIASES,
        "attention_bias": False,
        "qk_norm": True,
        "post_norm": False,
        "hidden_act": "xielu",
    },
    "cohere": {"layer_norm_eps": 1e-5, "logit_scale": 0.25, "use_qk_norm": True, "tie_word_embeddings": True},
    "dots1": {**_DEEPSEEK_EXPERTS, "head_dim": 32, "scoring_func": "sigmoid", "sliding_window": None},
    "ernie4_5": {"head_dim": 32, "use_bias": True, "tie_word_embeddings": True},
    "glm4": {"head_dim": 32, "attention_bias": True, "partial_rotary_factor": 0.5},
    "glm4_moe": _GLM4_MOE,
    "granite": {**_MULTIPLIERS, **_BIASES, "tie_word_embeddings": True},
    "granitemoe": {**_MULTIPLIERS, **_LOCAL_EXPERTS, "attention_bias": True},
    "helium": {**_BIASES, "head_dim": 16},
    "hunyuan_v1_dense": {
        "attention_bias": True,
        "head_dim": 32,
        "rope_scaling": {"type": "dynamic", "alpha": 50.0, "factor": 1.0},
    },
    "internlm3": {"bias": True, "qkv_bias": True},
    "mimo": {"num_nextn_predict_layers": 1},
    "minimax_m2": _MINIMAX,
    "mixtral": _LOCAL_EXPERTS,
    "nemotron": {"head_dim": 32, "norm_eps": 1e-5, "partial_rotary_factor": 0.5, "hidden_act": "relu2"},
    "olmo2": {"attention_bias": True},
    "olmoe": {"num_experts": 8, "num_experts_per_tok": 3, "norm_topk_prob": True, "head_dim": 16},
    "phi3": {"partial_rotary_factor": 0.5, "sliding_window": None},
    "qwen2_moe": {
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 64,
    },
    "seed_oss": {"head_dim": 32, "attention_bias": True, "attention_out_bias": True, "mlp_bias": True},
    "smollm3": {"no_rope_layers": [1, 0, 1, 0], "tie_word_embeddings": True},
    "solar_open": {**_GLM4_MOE, "partial_rotary_factor": 1.0},
    "stablelm": {
        "layer_norm_eps": 1e-5,
        "use_qkv_bias": True,
        "qk_layernorm": True,
        "use_parallel_residual": True,
        "partial_rotary_factor": 0.25,
    },
}
CONFIGS: dict[str, dict[str, Any]] = {
    **FAMILY_CONFIGS,
    **DEEPSEEK_CONFIGS,
    **{name: {**COMMON, **_KV, **beyond, "model_type": name} for name, beyond in _BEYOND.items()},
}
# Types that are others under another name.
CONFIGS |= STATEFUL_CONFIGS | {
    name: {**CONFIGS[like], "model_type": name}
    for name, like in {
        "iquestcoder": "llama",
        "minimax": "minimax_m2",
        "muse_glimmer_text": "muse_glimmer",
        "qwen2_5_vl": "qwen2",
        "qwen2_5_vl_text": "qwen2",
        "qwen2_vl": "qwen2",
        "qwen2_vl_text": "qwen2",
        "qwen3_vl_moe_text": "qwen3_moe",
        "qwen3_vl_text": "qwen3",
        "xverse": "llama",
    }.items()
}
# The types whose layers no other test runs.
NEW = [name for name, record in FAMILIES.items() if record.runs_as == name and name not in FAMILY_CONFIGS]
