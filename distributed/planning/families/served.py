"""The served model types as data, one record a type; docs/models.md tells how to add one.

The defaults are those of transformers' config classes (transformers 5.24), which differ from some of mlx-lm's
classes; tests compare them. Knows nothing of MLX, files or stages.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from distributed.planning.families.deepseek import DEEPSEEKS
from distributed.planning.families.family import (
    MULTIPLIERS,
    QWEN,
    SECTIONS,
    TIED,
    UNITY,
    UNTIED,
    Family,
    make_family,
)
from distributed.planning.families.hybrids import STATEFUL
from distributed.planning.families.mixtures import MIXTURES
from distributed.planning.families.windowed import WINDOWED

_LLAMA = make_family(
    "llama",
    "head_dim attention_bias mlp_bias rope_traditional",
    max_position_embeddings=2048,
)

_QWEN2_VL = make_family(
    "qwen2",
    "",
    {"attention_bias": (True,)},
    window="switched",
    rope_keys=SECTIONS,
    rms_norm_eps=1e-5,
    rope_theta=1e6,
    max_position_embeddings=32768,
    num_key_value_heads=8,
    max_window_layers=80,
)

_DENSE = {
    "apertus": make_family(
        "apertus",
        "mlp_bias",
        {"hidden_act": ("xielu",), "qk_norm": (True,), "post_norm": (False,)},
        rms_norm_eps=1e-5,
        rope_theta=12e6,
        max_position_embeddings=65536,
        attention_bias=False,
        mlp_bias=False,
        qk_norm=True,
        post_norm=False,
    ),
    "cohere": make_family(
        "cohere",
        "layer_norm_eps logit_scale attention_bias use_qk_norm layer_norm_bias",
        {**TIED, "rope_traditional": (True,)},
        rope_theta=500000.0,
        max_position_embeddings=8192,
        layer_norm_eps=1e-5,
        logit_scale=0.0625,
    ),
    "ernie4_5": make_family(
        "ernie4_5",
        "head_dim use_bias",
        rms_norm_eps=1e-5,
        rope_theta=500000.0,
        max_position_embeddings=131072,
        num_key_value_heads=2,
        head_dim=128,
        use_bias=False,
    ),
    "glm4": make_family(
        "glm4",
        "head_dim attention_bias partial_rotary_factor rope_traditional",
        UNTIED,
        rms_norm_eps=1.5625e-07,
        max_position_embeddings=131072,
        num_key_value_heads=2,
        head_dim=128,
        attention_bias=True,
        partial_rotary_factor=0.5,
    ),
    "granite": make_family(
        "granite",
        f"{MULTIPLIERS} attention_bias mlp_bias",
        embedding_factor="embedding_multiplier",
        max_position_embeddings=2048,
        attention_bias=False,
        mlp_bias=False,
        **UNITY,
    ),
    "helium": make_family(
        "helium",
        "attention_bias mlp_bias",
        rms_norm_eps=1e-8,
        rope_theta=100000.0,
        max_position_embeddings=4096,
        num_key_value_heads=20,
        head_dim=128,
        attention_bias=False,
        mlp_bias=False,
    ),
    "hunyuan_v1_dense": make_family(
        "hunyuan_v1_dense",
        "head_dim attention_bias use_qk_norm",
        {
            "attention_head_dim": (128,),
            "cla_share_factor": (2,),
            "norm_type": ("rms", "hf_rms"),
            "use_cla": (False,),
            "use_rotary_pos_emb": (True,),
        },
        rope_keys="alpha",
        rms_norm_eps=1e-5,
        max_position_embeddings=2048,
    ),
    "internlm3": make_family(
        "internlm3",
        "bias qkv_bias rope_traditional",
        rms_norm_eps=1e-5,
        max_position_embeddings=32768,
        num_key_value_heads=2,
    ),
    "iquestcoder": _LLAMA,
    "llama": _LLAMA,
    "mimo": make_family(
        "mimo",
        "num_nextn_predict_layers",
        {"attention_bias": (True,)},
        window="switched",
        max_position_embeddings=32768,
        max_window_layers=28,
    ),
    "ministral3": make_family(
        "ministral3",
        "head_dim",
        window="always",
        serves_windows=True,
        rope_keys="llama_4_scaling_beta",
        rms_norm_eps=1e-5,
        max_position_embeddings=262144,
        num_key_value_heads=8,
    ),
    "mistral": make_family(
        "llama",
        "head_dim",
        window="always",
        serves_windows=True,
        max_position_embeddings=131072,
        num_key_value_heads=8,
        sliding_window=4096,
    ),
    "nemotron": make_family(
        "nemotron",
        "head_dim attention_bias mlp_bias norm_eps partial_rotary_factor",
        {"hidden_act": ("relu2",)},
        hidden_act="relu2",
        max_position_embeddings=4096,
        head_dim=128,
        norm_eps=1e-5,
        partial_rotary_factor=0.5,
    ),
    "olmo2": make_family(
        "olmo2",
        "head_dim attention_bias mlp_bias",
        rms_norm_eps=1e-5,
        max_position_embeddings=2048,
    ),
    "phi3": make_family(
        "phi3",
        "partial_rotary_factor",
        {"full_attn_mod": (1,)},
        window="always",
        serves_windows=True,
        rms_norm_eps=1e-5,
        max_position_embeddings=4096,
        partial_rotary_factor=1.0,
    ),
    "qwen2": make_family(
        "qwen2",
        "rope_traditional",
        {"attention_bias": (True,)},
        window="switched",
        serves_windows=True,
        **QWEN,
    ),
    "qwen3": make_family("qwen3", "head_dim", window="switched", serves_windows=True, **QWEN, head_dim=128),
    "qwen2_5_vl": _QWEN2_VL,
    "qwen2_5_vl_text": _QWEN2_VL,
    "qwen2_vl": _QWEN2_VL,
    "qwen2_vl_text": _QWEN2_VL,
    "qwen3_vl_text": make_family(
        "qwen3",
        "head_dim",
        rope_keys=SECTIONS,
        rope_theta=500000.0,
        max_position_embeddings=128000,
        num_key_value_heads=32,
        head_dim=128,
    ),
    "seed_oss": make_family(
        "seed_oss",
        "head_dim attention_bias attention_out_bias mlp_bias rope_traditional",
        UNTIED,
        max_position_embeddings=524288,
        num_key_value_heads=8,
        head_dim=128,
        attention_bias=True,
    ),
    "smollm3": make_family(
        "smollm3",
        "head_dim attention_bias mlp_bias no_rope_layers no_rope_layer_interval",
        window="switched",
        rope_theta=2e6,
        max_position_embeddings=32768,
        num_key_value_heads=4,
        max_window_layers=28,
    ),
    "stablelm": make_family(
        "stablelm",
        "layer_norm_eps qk_layernorm use_parallel_residual use_qkv_bias partial_rotary_factor",
        UNTIED,
        max_position_embeddings=4096,
        num_key_value_heads=32,
        layer_norm_eps=1e-5,
        use_qkv_bias=False,
        partial_rotary_factor=0.25,
    ),
    "xverse": _LLAMA,
}
FAMILIES: Mapping[str, Family] = MappingProxyType(
    dict(sorted({**_DENSE, **MIXTURES, **DEEPSEEKS, **STATEFUL, **WINDOWED}.items()))
)
# Multimodal models whose text_config is of a served type; they are served with text only.
WRAPPERS = (
    *("gemma3", "gemma4", "kimi_k25", "kimi_vl", "llava", "mistral3", "muse_glimmer"),
    *("qwen2_5_vl", "qwen2_vl", "qwen3_5", "qwen3_5_moe", "qwen3_vl", "qwen3_vl_moe"),
)
# Named in messages; a type of a text_config is known by its wrapper.
SERVED_TYPES = tuple(sorted(name for name in {*FAMILIES, *WRAPPERS} if not name.endswith("_text")))
