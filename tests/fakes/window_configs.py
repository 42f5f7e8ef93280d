"""What differs from COMMON in tiny configs of types with windows; the window is shorter than prompts."""

from __future__ import annotations

from typing import Any

SLIDING, FULL = "sliding_attention", "full_attention"
WINDOW = {"num_key_value_heads": 2, "sliding_window": 5}
_THREE_OF_FOUR = {"layer_types": [SLIDING, SLIDING, SLIDING, FULL], "sliding_window_pattern": 4}
_SCALED = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64}
_SOFTCAPS = {"attn_logit_softcapping": 20.0, "final_logit_softcapping": 10.0}

WINDOW_BEYOND: dict[str, dict[str, Any]] = {
    "afmoe": {
        **WINDOW,
        "layer_types": [SLIDING, FULL, SLIDING, FULL],
        "head_dim": 32,
        "mup_enabled": True,
        "num_dense_layers": 1,
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "num_shared_experts": 2,
        "moe_intermediate_size": 32,
        "n_group": 4,
        "topk_group": 2,
        "route_norm": True,
        "route_scale": 1.5,
        "score_func": "sigmoid",
    },
    "cohere2": {
        **WINDOW,
        "sliding_window_pattern": 2,
        "layer_norm_eps": 1e-5,
        "layer_norm_bias": True,
        "logit_scale": 0.25,
        "attention_bias": True,
        "head_dim": 16,
        "tie_word_embeddings": True,
    },
    "exaone4": {**WINDOW, "sliding_window_pattern": "LLG", "head_dim": 32, "rope_scaling": None},
    "gemma2": {
        **WINDOW,
        **_SOFTCAPS,
        "sliding_window": 64,  # mlx-lm's class has no windows; test_transformers_parity.py has a short one
        "query_pre_attn_scalar": 40,
        "head_dim": 32,
        "tie_word_embeddings": True,
        "hidden_activation": "gelu_pytorch_tanh",
    },
    "gemma3_text": {
        **WINDOW,
        "sliding_window_pattern": 2,
        "query_pre_attn_scalar": 40,
        "head_dim": 32,
        "rope_theta": 1e6,
        "rope_local_base_freq": 5000.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "tie_word_embeddings": True,
        "hidden_activation": "gelu_pytorch_tanh",
    },
    "gemma4_text": {
        **WINDOW,
        "layer_types": [SLIDING, FULL, SLIDING, FULL],
        "head_dim": 32,
        "global_head_dim": 64,
        "num_global_key_value_heads": 1,
        "attention_k_eq_v": True,
        "hidden_size_per_layer_input": 0,
        "num_kv_shared_layers": 0,
        "final_logit_softcapping": 10.0,
        "enable_moe_block": True,
        "num_experts": 8,
        "top_k_experts": 3,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 32,
        "rope_parameters": {
            SLIDING: {"rope_type": "default", "rope_theta": 5000.0},
            FULL: {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25},
        },
        "tie_word_embeddings": True,
        "hidden_activation": "gelu_pytorch_tanh",
    },
    "gpt_oss": {
        **WINDOW,
        "layer_types": [SLIDING, FULL, SLIDING, FULL],
        "head_dim": 32,
        "num_local_experts": 8,
        "num_experts_per_tok": 3,
        "rope_scaling": _SCALED,
    },
    "step3p5": {
        **WINDOW,
        "num_attention_groups": 2,
        "attention_other_setting": {"num_attention_heads": 6, "num_attention_groups": 2, "head_dim": 32},
        "head_dim": 32,
        "layer_types": [FULL, SLIDING, SLIDING, FULL, SLIDING],  # one more than there are layers
        "rope_theta": [50000.0, 10000.0, 10000.0, 50000.0, 10000.0],
        "partial_rotary_factors": [0.5, 1.0, 1.0, 0.5, 1.0],
        "yarn_only_types": [FULL],
        "rope_scaling": None,
        "moe_num_experts": 8,
        "moe_top_k": 3,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 32,
        "moe_layers_enum": "1,2,3",
        "moe_router_scaling_factor": 1.5,
        "share_expert_dim": 96,
        "swiglu_limits": [0.0, 0.0, 0.5, 0.0],
        "swiglu_limits_shared": [0.0, 0.0, 0.0, 0.7],
    },
    "olmo3": {**WINDOW, **_THREE_OF_FOUR, "attention_bias": True, "rope_scaling": _SCALED},
}
