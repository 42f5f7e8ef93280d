"""Configs as published, without keys that have nothing to do with numbers, and what they must mean."""

import json
import math
from typing import Any

import pytest
from mlx.utils import tree_flatten

from distributed.models import check_model
from distributed.planning.checkpoint import TensorInfo, UnsupportedModel
from distributed.planning.families.model_config import normalise_config, tensor_name
from distributed.planning.families.served import FAMILIES
from distributed.planning.model_shape import make_shape
from distributed.planning.published import CONFIGS
from prompts.mlx_lm_import import import_mlx_lm

QWEN3_CODER = """
"model_type": "qwen3_moe", "hidden_size": 6144, "intermediate_size": 8192, "num_hidden_layers": 62,
"num_attention_heads": 96, "num_key_value_heads": 8, "vocab_size": 151936, "head_dim": 128,
"decoder_sparse_step": 1, "mlp_only_layers": [], "moe_intermediate_size": 2560, "num_experts": 160,
"num_experts_per_tok": 8, "norm_topk_prob": true, "shared_expert_intermediate_size": 0, "qkv_bias": false,
"use_qk_norm": true, "router_aux_loss_coef": 0.0, "output_router_logits": false,
"max_position_embeddings": 262144, "max_window_layers": 62, "sliding_window": null, "rms_norm_eps": 1e-06,
"rope_theta": 10000000, "rope_scaling": null, "tie_word_embeddings": false
"""
MIMO_V2_FLASH = """
"model_type": "mimo_v2_flash", "hidden_size": 4096, "intermediate_size": 16384, "num_hidden_layers": 48,
"num_attention_heads": 64, "num_key_value_heads": 4, "vocab_size": 152576, "head_dim": 192,
"v_head_dim": 128, "swa_num_attention_heads": 64, "swa_num_key_value_heads": 8, "swa_head_dim": 192,
"swa_v_head_dim": 128, "swa_rope_theta": 10000, "rope_theta": 5000000, "partial_rotary_factor": 0.334,
"sliding_window": 128, "sliding_window_size": 128, "attention_chunk_size": 128,
"moe_intermediate_size": 2048, "n_routed_experts": 256, "n_shared_experts": null, "n_group": 1,
"num_experts_per_tok": 8, "norm_topk_prob": true, "scoring_func": "sigmoid", "topk_group": 1,
"topk_method": "noaux_tc", "routed_scaling_factor": null, "layernorm_epsilon": 1e-05,
"attention_bias": false, "attention_value_scale": 0.707, "add_swa_attention_sink_bias": true,
"add_full_attention_sink_bias": false, "max_position_embeddings": 262144, "hidden_act": "silu",
"tie_word_embeddings": false
"""
GEMMA_2_9B = """
"model_type": "gemma2", "hidden_size": 3584, "intermediate_size": 14336, "num_hidden_layers": 42,
"num_attention_heads": 16, "num_key_value_heads": 8, "vocab_size": 256000, "head_dim": 256,
"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-06,
"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "query_pre_attn_scalar": 256,
"sliding_window": 4096, "sliding_window_size": 4096, "cache_implementation": "hybrid",
"max_position_embeddings": 8192, "rope_theta": 10000.0, "_attn_implementation": "eager"
"""
HUNYUAN_7B = """
"model_type": "hunyuan_v1_dense", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
"num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128167, "head_dim": 128,
"attention_head_dim": 128, "cla_share_factor": 2, "use_cla": false, "dense_list": [4096, 0],
"im_start_id": 4, "mask_init_id": 12, "norm_type": "rms", "use_qk_norm": true, "mlp_bias": false,
"use_rotary_pos_emb": true, "max_position_embeddings": 262144, "rms_norm_eps": 1e-05,
"rope_scaling": {"alpha": 1000.0, "factor": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "type": "dynamic"},
"rope_theta": 10000.0, "tie_word_embeddings": true, "attention_bias": false, "pool_type": "last"
"""
MINIMAX_M2 = """
"model_type": "minimax", "hidden_size": 3072, "intermediate_size": 1536, "num_hidden_layers": 62,
"num_attention_heads": 48, "num_key_value_heads": 8, "vocab_size": 200064, "head_dim": 128,
"rotary_dim": 64, "layernorm_mlp_beta": 1.0, "mlp_intermediate_size": 8192, "num_experts_per_tok": 8,
"num_local_experts": 256, "qk_norm_type": "per_layer", "use_qk_norm": true, "router_jitter_noise": 0.0,
"scoring_func": "sigmoid", "shared_intermediate_size": 0, "shared_moe_mode": "sigmoid",
"sliding_window": null, "swa_rope_theta": -1.0, "use_mtp": true, "use_routing_bias": true,
"max_position_embeddings": 196608, "rms_norm_eps": 1e-06, "rope_theta": 5000000,
"tie_word_embeddings": false
"""
DOTS_LLM1 = """
"model_type": "dots1", "hidden_size": 4096, "intermediate_size": 10944, "num_hidden_layers": 62,
"num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 152064, "first_k_dense_replace": 1,
"moe_intermediate_size": 1408, "moe_layer_freq": 1, "n_routed_experts": 128, "n_shared_experts": 2,
"norm_topk_prob": true, "num_experts_per_tok": 6, "routed_scaling_factor": 2.5, "n_group": 1,
"scoring_func": "noaux_tc", "topk_group": 1, "sliding_window": null, "max_window_layers": 62,
"max_position_embeddings": 32768, "rms_norm_eps": 1e-05, "rope_theta": 10000000, "attention_bias": false,
"tie_word_embeddings": false
"""
GRANITE_4_H_MICRO = """
"model_type": "granitemoehybrid", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 40,
"num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 100352, "init_method": "mup",
"attention_multiplier": 0.015625, "embedding_multiplier": 12, "logits_scaling": 8,
"residual_multiplier": 0.22, "num_experts_per_tok": 0, "num_local_experts": 0, "mamba_n_heads": 64,
"mamba_d_head": 64, "mamba_d_state": 128, "mamba_expand": 2, "shared_intermediate_size": 8192,
"max_position_embeddings": 131072, "position_embedding_type": "nope", "normalization_function": "rmsnorm",
"rms_norm_eps": 1e-05, "rope_theta": 10000, "tie_word_embeddings": true, "attention_bias": false,
"mamba_n_groups": 1, "mamba_d_conv": 4, "mamba_conv_bias": true, "mamba_proj_bias": false
"""
QWEN3_6_27B = """
"model_type": "qwen3_5_text", "hidden_size": 5120, "intermediate_size": 17408, "num_hidden_layers": 64,
"num_attention_heads": 24, "num_key_value_heads": 4, "vocab_size": 248320, "head_dim": 256,
"attn_output_gate": true, "output_gate_type": "swish", "full_attention_interval": 4,
"linear_key_head_dim": 128, "linear_num_key_heads": 16, "linear_num_value_heads": 48,
"linear_value_head_dim": 128, "linear_conv_kernel_dim": 4, "mamba_ssm_dtype": "float32",
"max_position_embeddings": 262144, "mtp_num_hidden_layers": 1, "rms_norm_eps": 1e-06,
"rope_parameters": {"mrope_interleaved": true, "mrope_section": [11, 11, 10],
"partial_rotary_factor": 0.25, "rope_theta": 10000000, "rope_type": "default"},
"partial_rotary_factor": 0.25, "tie_word_embeddings": false, "attention_bias": false
"""
# Lists of layers.
LISTS: dict[str, dict[str, Any]] = {
    MIMO_V2_FLASH: {
        "hybrid_layer_pattern": [0, 1, 1, 1, 1, *([0, 1, 1, 1, 1, 1] * 7), 0],
        "moe_layer_freq": [0] + [1] * 47,
    },
    MINIMAX_M2: {"attn_type_list": [1] * 62},
    GRANITE_4_H_MICRO: {"layer_types": (["mamba"] * 5 + ["attention"] + ["mamba"] * 4) * 4},
}
# Config, bytes of KV of a token in all layers (16-bit), rope_theta, window.
PUBLISHED: dict[str, tuple[str, int, float, int | None]] = {
    "Qwen3-Coder-480B-A35B-Instruct": (QWEN3_CODER, 62 * 4096, 1e7, None),
    "MiMo-V2-Flash": (MIMO_V2_FLASH, 2 * 320 * (9 * 4 + 39 * 8), 5e6, 128),
    "gemma-2-9b": (GEMMA_2_9B, 42 * 8192, 1e4, 4096),
    "Hunyuan-7B-Instruct": (HUNYUAN_7B, 32 * 4096, 1e4 * 1000 ** (128 / 126), None),
    "MiniMax-M2": (MINIMAX_M2, 62 * 4096, 5e6, None),
    "dots.llm1.inst": (DOTS_LLM1, 62 * 16384, 1e7, None),
    "granite-4.0-h-micro": (GRANITE_4_H_MICRO, 4 * 2048, 1e4, None),
    "Qwen3.6-27B": (QWEN3_6_27B, 16 * 4096, 1e7, None),
}


def read(text: str, **changes: Any) -> dict[str, Any]:
    """Read a published config; that of a text model stands in a text_config."""
    config = {**json.loads(f"{{{text}}}"), **LISTS.get(text, {}), **changes}
    name = config["model_type"].removesuffix("_text")
    return config if name == config["model_type"] else {"model_type": name, "text_config": config}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_is_accepted_with_its_numbers(name: str) -> None:
    """Tensors are those that mlx-lm's class makes of the config as it stands."""
    text, kv_bytes, theta, window = PUBLISHED[name]
    config = normalise_config(read(text), name)
    assert config["rope_theta"] == pytest.approx(theta)
    assert config.get("sliding_window") == window
    tensors = make_headers(read(text))
    check_model(name, config, tensors)
    assert sum(make_shape(name, config, tensors).layer_kv_bytes) == kv_bytes


def make_headers(raw: dict[str, Any]) -> dict[str, TensorInfo]:
    """Make the tensors of mlx-lm's model of a config, in 16 bits, as headers of files would name them."""
    module = import_mlx_lm(f"models.{FAMILIES[raw['model_type']].runs_as}")
    parameters: Any = tree_flatten(module.Model(module.ModelArgs.from_dict(raw)).parameters())
    return {
        tensor_name(name): TensorInfo("", "BF16", tuple(array.shape), 2 * math.prod(array.shape))
        for name, array in parameters
    }


@pytest.mark.parametrize("change", [{"output_gate_type": "sigmoid"}, {"output_scale": 2.0}])
def test_a_key_of_what_comes_out_may_change_numbers(change: dict[str, Any]) -> None:
    """Unlike output_router_logits and others."""
    with pytest.raises(UnsupportedModel, match=next(iter(change))):
        normalise_config(read(QWEN3_6_27B, **change), "config.json")


@pytest.mark.parametrize(
    ("config", "method"),
    [
        (read(MIMO_V2_FLASH), "fp8"),
        (read(MINIMAX_M2), "fp8"),
        ({**CONFIGS["Kimi-K2-Instruct-4bit"], "quantization": None}, "compressed-tensors"),
    ],
    ids=["MiMo-V2-Flash", "MiniMax-M2", "Kimi-K2-Thinking"],
)
def test_what_is_published_packed_alone_is_converted_from_that(config: dict[str, Any], method: str) -> None:
    """The class of mlx-lm reads it, and there are no plain weights."""
    with pytest.raises(UnsupportedModel, match=f"{method} .*makes from these"):
        normalise_config({**config, "quantization_config": {"quant_method": method}}, "config.json")
