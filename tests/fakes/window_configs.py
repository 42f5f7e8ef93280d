"""What differs from COMMON in tiny configs of types with windows; the window is shorter than prompts."""

from __future__ import annotations

from typing import Any

SLIDING, FULL = "sliding_attention", "full_attention"
WINDOW = {"num_key_value_heads": 2, "sliding_window": 5}
_THREE_OF_FOUR = {"layer_types": [SLIDING, SLIDING, SLIDING, FULL], "sliding_window_pattern": 4}
_SCALED = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64}
_SOFTCAPS = {"attn_logit_softcapping": 20.0, "final_logit_softcapping": 10.0}

WINDOW_BEYOND: dict[str, dict[str, Any]] = {
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
    "gpt_oss": {
        **WINDOW,
        "layer_types": [SLIDING, FULL, SLIDING, FULL],
        "head_dim": 32,
        "num_local_experts": 8,
        "num_experts_per_tok": 3,
        "rope_scaling": _SCALED,
    },
    "olmo3": {**WINDOW, **_THREE_OF_FOUR, "attention_bias": True, "rope_scaling": _SCALED},
}
