"""Tiny configs of DeepSeek's types and of those built like them; see family_configs.py.

An indexer selects fewer tokens than the tests' prompts have.
"""

from __future__ import annotations

from typing import Any

from distributed.self_test.seeded_models import COMMON, YARN

_EXPERTS = {
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
}
_V3 = {
    **_EXPERTS,
    "num_key_value_heads": 4,
    "n_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": 1.5,
    "norm_topk_prob": True,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "kv_lora_rank": 64,
    "q_lora_rank": 96,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 32,
    "v_head_dim": 24,
    "attention_bias": True,
    "rope_scaling": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
}
_INDEXED = {**_V3, "attention_bias": False, "index_head_dim": 64, "index_n_heads": 16, "index_topk": 6}
_BEYOND: dict[str, dict[str, Any]] = {
    "deepseek": {**_EXPERTS, "num_key_value_heads": 2, "attention_bias": True},
    "deepseek_v3": _V3,
    "deepseek_v32": _INDEXED,
    "glm4_moe_lite": {**_V3, "rope_scaling": None, "rms_norm_eps": 1e-5},
    "glm_moe_dsa": {**_INDEXED, "rope_scaling": None, "indexer_rope_interleave": True},
    "joyai_llm_flash": {**_V3, "n_group": 1, "topk_group": 1},
    "kimi_k2": {**_V3, "n_group": 1, "topk_group": 1},
}
DEEPSEEK_CONFIGS: dict[str, dict[str, Any]] = {
    name: {**COMMON, **beyond, "model_type": name} for name, beyond in _BEYOND.items()
}
