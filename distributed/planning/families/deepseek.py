"""The records of DeepSeek's own types and of those built like them; see families.py.

From V2 on a layer caches one latent of a token; V3.2 and GLM-5 also the key of an indexer, which selects what
is attended to.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distributed.planning.families.family import UNTIED, Family, make_family

_EXPERTS = (
    "n_routed_experts n_shared_experts num_experts_per_tok moe_intermediate_size first_k_dense_replace "
    "moe_layer_freq attention_bias"
)
_LATENT = "head_dim qk_head_dim kv_lora_rank q_lora_rank qk_nope_head_dim qk_rope_head_dim v_head_dim"
_ROUTED = f"{_EXPERTS} {_LATENT} n_group topk_group norm_topk_prob routed_scaling_factor"
_INDEXED = f"{_ROUTED} index_head_dim index_n_heads index_topk indexer_rope_interleave"
_SIGMOID = {**UNTIED, "topk_method": ("noaux_tc",), "scoring_func": ("sigmoid",), "rope_interleave": (True,)}

_NUMBERS: dict[str, Any] = {
    "max_position_embeddings": 163840,
    "moe_intermediate_size": 2048,
    "n_shared_experts": 1,
    "n_routed_experts": 256,
    "num_experts_per_tok": 8,
    "n_group": 8,
    "topk_group": 4,
    "routed_scaling_factor": 2.5,
    "norm_topk_prob": True,
    "first_k_dense_replace": 3,
    "moe_layer_freq": 1,
    "topk_method": "noaux_tc",
}
_INDEXER = {
    "q_lora_rank": 1536,
    "index_head_dim": 128,
    "index_n_heads": 64,
    "index_topk": 2048,
    "indexer_rope_interleave": False,
}
_GLM = {"rms_norm_eps": 1e-5, "max_position_embeddings": 202752, "n_group": 1, "topk_group": 1}
_LITE = {"moe_intermediate_size": 1536, "n_routed_experts": 64, "num_experts_per_tok": 4} | {
    "routed_scaling_factor": 1.8,
    "first_k_dense_replace": 1,
}
_GLM_INDEXER = {"q_lora_rank": 2048, "index_n_heads": 32, "indexer_rope_interleave": True}

_V3 = make_family(
    "deepseek_v3", _ROUTED, _SIGMOID, kv="latent", **{**_NUMBERS, "max_position_embeddings": 4096}
)

DEEPSEEKS: Mapping[str, Family] = {
    "deepseek": make_family(
        "deepseek",
        _EXPERTS,
        {**UNTIED, "norm_topk_prob": (False,)},
        max_position_embeddings=2048,
        first_k_dense_replace=0,
        moe_layer_freq=1,
    ),
    "deepseek_v2": make_family(
        "deepseek_v2",
        f"{_EXPERTS} {_LATENT} n_group topk_group routed_scaling_factor topk_method",
        {**UNTIED, "norm_topk_prob": (False,), "rope_interleave": (True,)},
        kv="latent",
        max_position_embeddings=2048,
        routed_scaling_factor=1.0,
        first_k_dense_replace=0,
        topk_method="greedy",
    ),
    "deepseek_v3": _V3,
    "deepseek_v32": make_family("deepseek_v32", _INDEXED, _SIGMOID, kv="latent", **{**_NUMBERS, **_INDEXER}),
    "glm4_moe_lite": make_family(
        "glm4_moe_lite", _ROUTED, _SIGMOID, kv="latent", **{**_NUMBERS, **_GLM, **_LITE}
    ),
    "glm_moe_dsa": make_family(
        "deepseek_v32", _INDEXED, _SIGMOID, kv="latent", **{**_NUMBERS, **_INDEXER, **_GLM, **_GLM_INDEXER}
    ),
    "joyai_llm_flash": _V3,
    "kimi_k2": _V3,
}
