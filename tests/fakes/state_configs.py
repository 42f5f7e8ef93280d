"""A tiny config of each served hybrid type: layers with states, and layers that attend."""

from __future__ import annotations

from typing import Any

from distributed.planning.families.family import MULTIPLIERS
from distributed.self_test.seeded_models import COMMON

_DELTA = {
    "num_key_value_heads": 2,
    "head_dim": 32,
    "layer_types": ["linear_attention", "full_attention"] * 2,
    "full_attention_interval": 2,
    "partial_rotary_factor": 0.5,
    "attention_bias": True,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 24,
    "linear_value_head_dim": 16,
    "linear_conv_kernel_dim": 4,
}
_QWEN3_5 = {**_DELTA, "rope_parameters": {"rope_theta": 10000.0, "partial_rotary_factor": 0.5}}
_EXPERTS = {
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 96,
    "norm_topk_prob": True,
}
_LFM2 = {
    "num_key_value_heads": 2,
    "norm_eps": 1e-5,
    "conv_bias": True,
    "conv_L_cache": 4,
    "layer_types": ["conv", "full_attention", "conv", "conv"],
    "tie_word_embeddings": True,
}

# What differs from COMMON.
_BEYOND: dict[str, dict[str, Any]] = {
    "falcon_h1": {
        "num_key_value_heads": 2,
        "head_dim": 32,
        "attention_bias": False,
        "attention_in_multiplier": 0.9,
        "attention_out_multiplier": 0.8,
        "embedding_multiplier": 3.0,
        "key_multiplier": 0.7,
        "lm_head_multiplier": 0.6,
        "mlp_multipliers": [0.9, 0.8],
        "ssm_in_multiplier": 1.2,
        "ssm_multipliers": [0.9, 0.8, 0.7, 0.6, 0.5],
        "ssm_out_multiplier": 0.8,
        "mamba_n_heads": 8,
        "mamba_d_head": 16,
        "mamba_d_ssm": 128,
        "mamba_d_state": 12,
        "mamba_d_conv": 4,
        "mamba_n_groups": 1,
        "mamba_conv_bias": True,
        "mamba_proj_bias": False,
        "mamba_rms_norm": True,
        "mamba_norm_before_gate": False,
        "projectors_bias": False,
        "tie_word_embeddings": True,
    },
    "granitemoehybrid": {
        **dict(zip(MULTIPLIERS.split(), (3.0, 0.3, 0.7, 0.5), strict=True)),
        "num_key_value_heads": 2,
        "layer_types": ["mamba", "attention", "mamba", "mamba"],
        "attention_bias": True,
        "num_local_experts": 8,
        "num_experts_per_tok": 3,
        "shared_intermediate_size": 96,
        "mamba_n_heads": 8,
        "mamba_d_head": 16,
        "mamba_d_state": 12,
        "mamba_d_conv": 4,
        "mamba_n_groups": 1,
        "mamba_conv_bias": True,
        "mamba_proj_bias": True,
        "time_step_limit": [0.0, 100.0],
        "position_embedding_type": "rope",
    },
    "lfm2": {
        **_LFM2,
        "block_dim": 64,
        "block_multiple_of": 32,
        "block_ffn_dim_multiplier": 1.5,
        "block_auto_adjust_ff_dim": True,
    },
    "lfm2_moe": {
        **_LFM2,
        **_EXPERTS,
        "num_dense_layers": 1,
        "use_expert_bias": True,
        "routed_scaling_factor": 1.5,
    },
    "nemotron_h": {
        "num_key_value_heads": 2,
        "head_dim": 32,
        "hybrid_override_pattern": "ME*-",
        "mamba_num_heads": 8,
        "mamba_head_dim": 16,
        "mamba_proj_bias": False,
        "ssm_state_size": 12,
        "n_groups": 2,
        "conv_kernel": 4,
        "layer_norm_epsilon": 1e-5,
        "use_conv_bias": True,
        "use_bias": False,
        "attention_bias": True,
        "mlp_bias": True,
        "mlp_hidden_act": "relu2",
        "n_routed_experts": 8,
        "n_shared_experts": 1,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 32,
        "moe_shared_expert_intermediate_size": 96,
        "n_group": 4,
        "topk_group": 2,
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.5,
    },
    "qwen3_5": _QWEN3_5,
    "qwen3_5_moe": {**_QWEN3_5, **_EXPERTS},
    "qwen3_next": {**_DELTA, **_EXPERTS, "decoder_sparse_step": 1, "mlp_only_layers": []},
}
STATEFUL_CONFIGS: dict[str, dict[str, Any]] = {
    name: {**COMMON, **beyond, "model_type": name} for name, beyond in _BEYOND.items()
}
STATEFUL_CONFIGS |= {
    f"{name}_text": {**STATEFUL_CONFIGS[name], "model_type": f"{name}_text"}
    for name in ("qwen3_5", "qwen3_5_moe")
}
