"""The records of models with layers that see a window of tokens; see families.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distributed.planning.family import TIED, UNTIED, Family, make_family

_GELU = {"hidden_act": ("gelu_pytorch_tanh",), "hidden_activation": ("gelu_pytorch_tanh",)}
_GEMMA: dict[str, Any] = {
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
}

WINDOWED: Mapping[str, Family] = {
    "cohere2": make_family(
        "cohere2",
        "head_dim layer_norm_eps logit_scale attention_bias layer_norm_bias sliding_window_pattern",
        {
            **TIED,
            "order_of_interleaved_layers": ("local_attn_first",),
            "position_embedding_type": ("rope_gptj",),
            "rope_traditional": (True,),
            "rotary_pct": (1.0,),
            "use_gated_activation": (True,),
            "use_parallel_block": (True,),
            "use_parallel_embedding": (True, False),
        },
        window="listed",
        masks_windows=True,
        max_position_embeddings=8192,
        layer_norm_eps=1e-5,
        logit_scale=0.0625,
        attention_bias=False,
        sliding_window=4096,
        sliding_window_pattern=4,
    ),
    "exaone4": make_family(
        "exaone4",
        "head_dim sliding_window_pattern",
        window="listed",
        masks_windows=True,
        rms_norm_eps=1e-5,
        max_position_embeddings=2048,
        num_key_value_heads=32,
        sliding_window=4096,
        sliding_window_pattern=4,
    ),
    "gemma2": make_family(
        "gemma2",
        "head_dim query_pre_attn_scalar attn_logit_softcapping final_logit_softcapping rope_traditional",
        {**TIED, **_GELU},
        window="listed",
        embedding_factor="args.hidden_size",
        max_position_embeddings=8192,
        attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0,
        sliding_window=4096,
        sliding_window_pattern=2,
        **_GEMMA,
    ),
    "gemma3_text": make_family(
        "gemma3_text",
        "head_dim query_pre_attn_scalar rope_local_base_freq sliding_window_pattern",
        {"tie_word_embeddings": (True, False), **_GELU},
        window="listed",
        masks_windows=True,
        local_theta="rope_local_base_freq",
        embedding_factor="args.hidden_size",
        rope_theta=1e6,
        rope_local_base_freq=10000.0,
        vocab_size=262208,
        max_position_embeddings=131072,
        sliding_window=4096,
        sliding_window_pattern=6,
        **_GEMMA,
    ),
    "gpt_oss": make_family(
        "gpt_oss",
        "head_dim num_local_experts num_experts_per_tok",
        {**UNTIED, "attention_bias": (True,), "swiglu_alpha": (1.702,), "swiglu_limit": (7.0,)},
        window="listed",
        masks_windows=True,
        packings=("mxfp4",),
        rms_norm_eps=1e-5,
        rope_theta=150000.0,
        max_position_embeddings=131072,
        num_key_value_heads=8,
        head_dim=64,
        num_local_experts=128,
        num_experts_per_tok=4,
        sliding_window=128,
        sliding_window_pattern=2,
    ),
    "olmo3": make_family(
        "olmo3",
        "head_dim attention_bias",
        window="listed",
        masks_windows=True,
        local_theta="rope_theta",
        rms_norm_eps=1e-5,
        rope_theta=500000.0,
        max_position_embeddings=2048,
        attention_bias=False,
        sliding_window=4096,
        sliding_window_pattern=4,
    ),
    "step3p5": make_family(
        "step3p5",
        "head_dim num_attention_groups attention_other_setting partial_rotary_factors "
        "use_head_wise_attn_gate "
        "moe_num_experts moe_top_k moe_intermediate_size moe_layers_enum moe_router_scaling_factor "
        "norm_expert_weight share_expert_dim swiglu_limits swiglu_limits_shared yarn_only_types",
        {
            **UNTIED,
            "att_impl_type": ("GQA",),
            "moe_router_activation": ("sigmoid",),
            "need_fp32_gate": (True, False),
            "sink": (False,),
            "use_moe": (True,),
            "use_moe_router_bias": (True,),
            "use_qk_norm": (True,),
            "use_rope_layers": (),
            "zero_centered": (True,),
        },
        window="listed",
        masks_windows=True,
        local_theta="local_rope_theta",
        spellings={"num_attention_groups": "num_key_value_heads", "moe_top_k": "num_experts_per_tok"},
        rms_norm_eps=1e-5,
        max_position_embeddings=262144,
        moe_num_experts=288,
        moe_top_k=8,
        sliding_window=512,
    ),
}
