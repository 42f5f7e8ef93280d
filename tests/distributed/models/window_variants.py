"""Variants of transformers_models.py with windows that are shorter than its prompt and its chunks."""

from __future__ import annotations

from typing import Any

_KV = {"num_key_value_heads": 2}
_WINDOW = {**_KV, "sliding_window": 37}
_PLAIN = {"rope_type": "default", "rope_theta": 500000.0}
_YARN = {"rope_type": "yarn", "rope_theta": 500000.0, "factor": 4.0, "original_max_position_embeddings": 64}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_GPT_OSS = {**_WINDOW, "head_dim": 32, "num_local_experts": 8, "num_experts_per_tok": 3}
_GEMMA = {**_WINDOW, "head_dim": 32, "query_pre_attn_scalar": 40, "pad_token_id": 0}
_GEMMA3 = {
    **_GEMMA,
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0},
    },
}
_BETA = {**_PLAIN, "llama_4_scaling_beta": 0.3, "original_max_position_embeddings": 64}
_SWITCHED = {"use_sliding_window": True, "max_window_layers": 2}
_GEMMA4 = {
    **_WINDOW,
    "head_dim": 32,
    "global_head_dim": 64,
    "pad_token_id": 0,
    "hidden_size_per_layer_input": 0,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}
_LAGUNA = {
    "full_attention": {**_YARN, "partial_rotary_factor": 0.5, "attention_factor": 1.3},
    "sliding_attention": {**_PLAIN, "partial_rotary_factor": 1.0},
}
_BY_TYPE = {"full_attention": _YARN, "sliding_attention": _PLAIN}

# name: (model type, what its config differs in)
WINDOW_VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "afmoe": (
        "afmoe",
        {**_WINDOW, "rope_parameters": _YARN, "head_dim": 32, "num_experts": 8, "num_experts_per_tok": 3}
        | {"num_shared_experts": 2, "moe_intermediate_size": 48, "route_scale": 1.5, "mup_enabled": True},
    ),
    "cohere2": (
        "cohere2",
        {**_WINDOW, "rope_parameters": _PLAIN, "logit_scale": 0.25, "attention_bias": True}
        | {"layer_types": ["sliding_attention", "full_attention"] * 2},
    ),
    "exaone4": ("exaone4", {**_WINDOW, "head_dim": 32, "rope_parameters": _LLAMA3}),
    "exaone_moe": (
        "exaone_moe",
        {**_WINDOW, "head_dim": 32, "rope_parameters": _PLAIN, "num_experts": 8, "num_experts_per_tok": 3}
        | {"num_shared_experts": 2, "moe_intermediate_size": 48, "n_group": 4, "topk_group": 2},
    ),
    "exaone4-full": (
        "exaone4",
        {**_KV, "head_dim": 32, "rope_parameters": _LLAMA3, "sliding_window": None}
        | {"layer_types": ["full_attention"] * 4, "tie_word_embeddings": True},
    ),
    "gemma2": (
        "gemma2",
        {**_GEMMA, "rope_parameters": _PLAIN, "attn_logit_softcapping": 20.0, "final_logit_softcapping": 9.0},
    ),
    "gemma3-text": ("gemma3_text", {**_GEMMA3, "layer_types": ["sliding_attention", "full_attention"] * 2}),
    "gemma3_text": (
        "gemma3_text",
        {**_GEMMA3, "layer_types": ["sliding_attention"] * 3 + ["full_attention"]},
    ),
    "gemma4-text": ("gemma4_text", {**_GEMMA4, "num_global_key_value_heads": 1, "attention_k_eq_v": True}),
    "gemma4_text": (
        "gemma4_text",
        {**_GEMMA4, "enable_moe_block": True, "num_experts": 8, "top_k_experts": 3}
        | {"moe_intermediate_size": 48, "final_logit_softcapping": 9.0},
    ),
    "gpt_oss": ("gpt_oss", {**_GPT_OSS, "rope_parameters": {**_YARN, "truncate": False}}),
    "gpt_oss-plain": ("gpt_oss", {**_GPT_OSS, "rope_parameters": _PLAIN}),
    "laguna": (
        "laguna",
        {**_WINDOW, "head_dim": 32, "layer_types": ["full_attention", "sliding_attention"] * 2}
        | {"num_attention_heads_per_layer": [4, 6, 4, 6], "num_experts": 8, "num_experts_per_tok": 3}
        | {"moe_intermediate_size": 48, "shared_expert_intermediate_size": 48}
        | {"rope_parameters": _LAGUNA, "moe_routed_scaling_factor": 1.5},
    ),
    "mellum": (
        "mellum",
        {**_WINDOW, "head_dim": 32, "layer_types": ["full_attention", "sliding_attention"] * 2}
        | {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 48}
        | {"rope_parameters": {"full_attention": _YARN, "sliding_attention": _PLAIN}},
    ),
    "ministral3-window": ("ministral3", {**_WINDOW, "head_dim": 16, "rope_parameters": _BETA}),
    "mistral-window": ("mistral", {**_WINDOW, "rope_parameters": _PLAIN}),
    "mixtral-window": (
        "mixtral",
        {**_WINDOW, "rope_parameters": _PLAIN, "num_local_experts": 8, "num_experts_per_tok": 3},
    ),
    "muse_glimmer-text": (
        "muse_glimmer_text",
        {**_WINDOW, "head_dim": 32, "rope_parameters": _YARN, "qk_scale_factor": 2.5},
    ),
    "olmo3": ("olmo3", {**_WINDOW, "rope_parameters": _BY_TYPE}),
    "phi3-window": ("phi3", {**_WINDOW, "rope_parameters": _PLAIN, "pad_token_id": 0}),
    "qwen2-window": ("qwen2", {**_WINDOW, **_SWITCHED, "rope_parameters": _YARN}),
    "qwen3-window": ("qwen3", {**_WINDOW, **_SWITCHED, "head_dim": 32, "rope_parameters": _PLAIN}),
}
