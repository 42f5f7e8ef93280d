"""Makes tiny model folders with transformers' own classes, and the logits that torch computes for them.

As a program, `python -m tests.distributed.models.transformers_models FOLDER` with torch on the path
(requirements-long.txt): each variant's folder as `save_pretrained` writes it, seeded, float32, with
logits.npy (T, V) of IDS in it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from tests.distributed.models.window_variants import WINDOW_VARIANTS

VOCAB_SIZE = 320
NUM_TOKENS = 212
IDS = [10 + (37 * i * i + 11 * i + 5) % (VOCAB_SIZE - 10) for i in range(NUM_TOKENS)]
_SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 4096,
}
_KV = {"num_key_value_heads": 2}
# Original lengths are short of the prompt, so that a scaling that is ignored or cut off shows.
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_YARN = {"rope_type": "yarn", "rope_theta": 500000.0, "factor": 4.0, "original_max_position_embeddings": 64}
_LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
_PLAIN = {"rope_type": "default", "rope_theta": 500000.0}
_BOTH_MSCALES = {"mscale": 0.707, "mscale_all_dim": 0.707}
_EXPERTS = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 48, "head_dim": 32}
_DEEPSEEK = {
    "kv_lora_rank": 48,
    "q_lora_rank": None,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 24,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 48,
    "first_k_dense_replace": 1,
}
_V3 = {
    **_DEEPSEEK,
    "num_key_value_heads": 4,
    "n_shared_experts": 1,
    "q_lora_rank": 40,
    "n_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": 2.5,
    "rope_parameters": {**_YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
}
# transformers takes 1e-6 for the norms of latents, whatever rms_norm_eps is
_LITE = {**_V3, "rope_parameters": _PLAIN, "rms_norm_eps": 1e-6, "attention_bias": True}
_INDEXED = {**_V3, "index_topk": 48, "index_head_dim": 32, "index_n_heads": 16}
_BETA = {"llama_4_scaling_beta": 0.3, "original_max_position_embeddings": 64}

_MULTIPLIERS = {
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.3,
    "residual_multiplier": 0.7,
    "logits_scaling": 0.5,
}
_LOCAL_EXPERTS = {"num_local_experts": 8, "num_experts_per_tok": 3}
_SIGMOID_EXPERTS = {
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 48,
    "n_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": 1.5,
    "norm_topk_prob": True,
}
_HALF = {"rope_parameters": {**_PLAIN, "partial_rotary_factor": 0.5}}
_GLM = {**_KV, **_HALF, "head_dim": 32, "attention_bias": True, "pad_token_id": 0}

_QWEN_VISION = {
    "vision_config": {
        "depth": 1,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_heads": 2,
        "out_hidden_size": 64,
        "deepstack_visual_indexes": [0],
    },
}
_SEES: dict[str, dict[str, Any]] = {
    "gemma3": {
        "vision_config": {
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
        "mm_tokens_per_image": 4,
    },
    "gemma4": {
        "vision_config": {
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 16,
        },
    },
    "mistral3": {
        "vision_config": {
            "model_type": "pixtral",
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
        "image_token_index": 7,
    },
    "muse_glimmer": {
        "vision_config": {
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
        },
        "out_hidden_size": 128,
        "projector_hidden_size": 64,
    },
    "qwen2_vl": {"vision_config": {"depth": 1, "embed_dim": 32, "num_heads": 2, "hidden_size": 64}},
    "qwen2_5_vl": _QWEN_VISION,
    "qwen3_vl": _QWEN_VISION,
    "qwen3_5": _QWEN_VISION,
    "qwen3_5_moe": _QWEN_VISION,
}
_DELTA = {
    **_KV,
    "head_dim": 32,
    "layer_types": ["linear_attention", "full_attention"] * 2,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 24,
    "linear_value_head_dim": 16,
    "rope_parameters": {**_PLAIN, "partial_rotary_factor": 0.5},
}
_DELTA_EXPERTS = {
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 48,
    "shared_expert_intermediate_size": 40,
}
_LFM2 = {
    **_KV,
    "layer_types": ["conv", "full_attention", "conv", "conv"],
    "conv_L_cache": 4,
    "conv_bias": True,
    "rope_parameters": _PLAIN,
}
_SECTIONS = {"rope_parameters": {**_PLAIN, "mrope_section": [4, 2, 2]}}
_WIDE_SECTIONS = {
    "rope_parameters": {**_PLAIN, "mrope_section": [8, 4, 4], "mrope_interleaved": True},
    "head_dim": 32,
}

# name: (model type, what its config differs in)
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **WINDOW_VARIANTS,
    "llama": ("llama", {**_KV, "rope_parameters": _PLAIN, "attention_bias": True, "mlp_bias": True}),
    "llama-tied": ("llama", {**_KV, "tie_word_embeddings": True, "head_dim": 32}),
    "llama-llama3": ("llama", {**_KV, "rope_parameters": _LLAMA3}),
    "llama-yarn": ("llama", {**_KV, "rope_parameters": _YARN}),
    "llama-yarn-attention_factor": ("llama", {"rope_parameters": {**_YARN, "attention_factor": 1.3}}),
    "llama-yarn-mscale": ("llama", {"rope_parameters": {**_YARN, "mscale": 1.0, "mscale_all_dim": 0.5}}),
    "llama-yarn-mscale-alone": ("llama", {"rope_parameters": {**_YARN, "mscale": 0.5, "beta_fast": 16.0}}),
    "llama-linear": ("llama", {"rope_parameters": _LINEAR}),
    "mistral": ("mistral", {**_KV, "rope_parameters": _PLAIN, "sliding_window": None}),
    "ministral3": ("ministral3", {**_KV, "head_dim": 16, "rope_parameters": {**_PLAIN, **_BETA}}),
    "ministral3-yarn": (
        "ministral3",
        {**_KV, "head_dim": 16, "rope_parameters": {**_YARN, "mscale": 1.0, "mscale_all_dim": 1.0, **_BETA}},
    ),
    "mistral3-ministral3": (
        "ministral3",
        {**_KV, "head_dim": 16, "rope_parameters": {**_YARN, "mscale": 1.0, "mscale_all_dim": 1.0, **_BETA}},
    ),
    "mistral3-mistral": ("mistral", {**_KV, "rope_parameters": _PLAIN, "sliding_window": None}),
    "qwen2": ("qwen2", {**_KV, "rope_parameters": _PLAIN}),
    "qwen2-yarn": ("qwen2", {**_KV, "rope_parameters": _YARN, "tie_word_embeddings": True}),
    "qwen3": ("qwen3", {**_KV, "head_dim": 32, "rope_parameters": _PLAIN}),
    "qwen3-llama3": ("qwen3", {**_KV, "head_dim": 32, "rope_parameters": _LLAMA3}),
    "qwen3_moe": ("qwen3_moe", {**_KV, **_EXPERTS, "rope_parameters": _PLAIN}),
    "qwen3_moe-yarn": (
        "qwen3_moe",
        {**_KV, **_EXPERTS, "rope_parameters": _YARN, "norm_topk_prob": True, "mlp_only_layers": [2]},
    ),
    "deepseek_v2": ("deepseek_v2", {**_DEEPSEEK, "rope_parameters": _PLAIN}),
    "deepseek_v2-yarn": ("deepseek_v2", {**_DEEPSEEK, "rope_parameters": {**_YARN, **_BOTH_MSCALES}}),
    "deepseek_v2-yarn-mscale": (
        "deepseek_v2",
        {**_DEEPSEEK, "rope_parameters": {**_YARN, "mscale": 1.0, "mscale_all_dim": 0.5}},
    ),
    "deepseek_v2-yarn-plain": ("deepseek_v2", {**_DEEPSEEK, "rope_parameters": _YARN}),
    "deepseek_v2-yarn-attention_factor": (
        "deepseek_v2",
        {**_DEEPSEEK, "rope_parameters": {**_YARN, "attention_factor": 0.8}},
    ),
    "deepseek_v2-linear": ("deepseek_v2", {**_DEEPSEEK, "rope_parameters": _LINEAR, "q_lora_rank": 40}),
    "deepseek_v2-llama3": ("deepseek_v2", {**_DEEPSEEK, "rope_parameters": _LLAMA3, "attention_bias": True}),
    "deepseek_v2-groups": (
        "deepseek_v2",
        {**_DEEPSEEK, "topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2}
        | {"routed_scaling_factor": 2.5, "rope_parameters": _PLAIN},
    ),
    "deepseek_v3": ("deepseek_v3", _V3),
    "deepseek_v3-plain": (
        "deepseek_v3",
        {**_V3, "rope_parameters": _PLAIN, "norm_topk_prob": False, "q_lora_rank": None, "n_group": 1}
        | {"topk_group": 1, "attention_bias": True},
    ),
    "deepseek_v32": ("deepseek_v32", _INDEXED),
    "glm4_moe_lite": ("glm4_moe_lite", _LITE),
    "glm_moe_dsa": ("glm_moe_dsa", {**_INDEXED, "rope_parameters": _PLAIN, "n_group": 1, "topk_group": 1}),
    "apertus": ("apertus", {**_KV, "rope_parameters": _LLAMA3}),
    "cohere": ("cohere", {**_KV, "rope_parameters": _PLAIN, "logit_scale": 0.25, "use_qk_norm": True}),
    "dots1": (
        "dots1",
        {**_KV, **_SIGMOID_EXPERTS, "rope_parameters": _PLAIN, "first_k_dense_replace": 1, "head_dim": 32},
    ),
    "ernie4_5": ("ernie4_5", {**_KV, "rope_parameters": _PLAIN, "use_bias": True, "head_dim": 32}),
    "falcon_h1": (
        "falcon_h1",
        {**_KV, "rope_parameters": _PLAIN, "head_dim": 32, "mamba_d_ssm": 128, "mamba_d_head": 16}
        | {"mamba_n_heads": 8, "mamba_d_state": 12, "mamba_n_groups": 2, "pad_token_id": 0}
        | {"attention_in_multiplier": 0.9, "attention_out_multiplier": 0.8, "key_multiplier": 0.7}
        | {"embedding_multiplier": 3.0, "lm_head_multiplier": 0.6, "mlp_multipliers": [0.9, 0.8]}
        | {"ssm_in_multiplier": 1.2, "ssm_out_multiplier": 0.8, "ssm_multipliers": [0.9, 0.8, 0.7, 0.6, 0.5]},
    ),
    "falcon_h1-norm": (
        "falcon_h1",
        {**_KV, "rope_parameters": _PLAIN, "head_dim": 32, "mamba_d_ssm": 128, "mamba_d_head": 16}
        | {"mamba_n_heads": 8, "mamba_d_state": 12, "pad_token_id": 0, "mamba_rms_norm": True}
        | {"mamba_norm_before_gate": False, "embedding_multiplier": 3.0, "lm_head_multiplier": 0.6}
        | {"tie_word_embeddings": True},
    ),
    "glm4": ("glm4", _GLM),
    "glm4_moe": (
        "glm4_moe",
        {**_GLM, **_SIGMOID_EXPERTS, "use_qk_norm": True, "first_k_dense_replace": 1},
    ),
    "glm4_moe-yarn": (
        "glm4_moe",
        {**_GLM, **_SIGMOID_EXPERTS, "rope_parameters": {**_YARN, "partial_rotary_factor": 0.5}},
    ),
    "granite": (
        "granite",
        {**_KV, **_MULTIPLIERS, "rope_parameters": _PLAIN, "attention_bias": True, "mlp_bias": True},
    ),
    "granitemoe": ("granitemoe", {**_KV, **_MULTIPLIERS, **_LOCAL_EXPERTS, "rope_parameters": _PLAIN}),
    "granitemoehybrid": (
        "granitemoehybrid",
        {**_KV, **_MULTIPLIERS, **_LOCAL_EXPERTS, "rope_parameters": _PLAIN, "mamba_proj_bias": True}
        | {"layer_types": ["mamba", "attention", "mamba", "mamba"], "shared_intermediate_size": 40}
        | {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 12}
        | {"position_embedding_type": "rope"},
    ),
    "granitemoehybrid-dense": (
        "granitemoehybrid",
        {**_KV, **_MULTIPLIERS, "num_local_experts": 0, "tie_word_embeddings": True}
        | {"layer_types": ["mamba", "attention"] * 2, "shared_intermediate_size": 40}
        | {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 12}
        | {"position_embedding_type": None},
    ),
    "helium": ("helium", {**_KV, "rope_parameters": _PLAIN, "head_dim": 16}),
    "hunyuan_v1_dense": (
        "hunyuan_v1_dense",
        {**_KV, "head_dim": 32, "attention_bias": True}
        | {"rope_parameters": {**_PLAIN, "rope_type": "dynamic", "alpha": 50.0, "factor": 1.0}},
    ),
    "hunyuan_v1_dense-yarn": ("hunyuan_v1_dense", {**_KV, "head_dim": 32, "rope_parameters": _YARN}),
    "minimax_m2": ("minimax_m2", {**_KV, **_LOCAL_EXPERTS, **_HALF, "head_dim": 32}),
    "lfm2": ("lfm2", {**_LFM2, "block_multiple_of": 32, "block_ffn_dim_multiplier": 1.5}),
    "lfm2_moe": (
        "lfm2_moe",
        {**_LFM2, "num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 48}
        | {"num_dense_layers": 1, "routed_scaling_factor": 1.5},
    ),
    "mixtral": ("mixtral", {**_KV, **_LOCAL_EXPERTS, "rope_parameters": _PLAIN}),
    "mixtral-yarn": ("mixtral", {**_KV, **_LOCAL_EXPERTS, "rope_parameters": _YARN, "head_dim": 16}),
    "nemotron_h": (
        "nemotron_h",
        {**_KV, **_SIGMOID_EXPERTS, "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"]}
        | {"mamba_num_heads": 8, "mamba_head_dim": 16, "ssm_state_size": 12, "n_groups": 2, "head_dim": 32}
        | {"moe_shared_expert_intermediate_size": 40, "pad_token_id": 0},
    ),
    "nemotron": ("nemotron", {**_KV, **_HALF, "head_dim": 32}),
    "internlm3": ("internlm3", {**_KV, "head_dim": 16, "rope_parameters": _PLAIN}),
    "olmo2": ("olmo2", {**_KV, "rope_parameters": _PLAIN}),
    "olmoe": (
        "olmoe",
        {
            **_KV,
            "num_experts": 8,
            "num_experts_per_tok": 3,
            "norm_topk_prob": True,
            "rope_parameters": _PLAIN,
        },
    ),
    "phi3": ("phi3", {**_KV, **_HALF, "pad_token_id": 0}),
    "qwen2_moe": (
        "qwen2_moe",
        {**_KV, **_EXPERTS, "shared_expert_intermediate_size": 64, "head_dim": 16, "rope_parameters": _YARN},
    ),
    "qwen2_vl-text": ("qwen2_vl_text", {**_KV, **_SECTIONS}),
    "qwen2_5_vl-text": ("qwen2_5_vl_text", {**_KV, **_SECTIONS}),
    "qwen3_vl-text": ("qwen3_vl_text", {**_KV, **_WIDE_SECTIONS}),
    "qwen3_5-text": ("qwen3_5_text", {**_DELTA, "attention_bias": True}),
    "qwen3_5_moe-text": ("qwen3_5_moe_text", {**_DELTA, **_DELTA_EXPERTS}),
    "qwen3_next": ("qwen3_next", {**_DELTA, **_DELTA_EXPERTS}),
    "seed_oss": (
        "seed_oss",
        {**_KV, "rope_parameters": _PLAIN, "head_dim": 32, "attention_out_bias": True, "mlp_bias": True},
    ),
    "smollm3": (
        "smollm3",
        {**_KV, "rope_parameters": _YARN, "no_rope_layers": [1, 0, 1, 0], "pad_token_id": 0},
    ),
    "solar_open": ("solar_open", {**_KV, **_SIGMOID_EXPERTS, "rope_parameters": _YARN, "head_dim": 32}),
    "stablelm": (
        "stablelm",
        {**_KV, "rope_parameters": {**_PLAIN, "partial_rotary_factor": 0.25}}
        | {"use_qkv_bias": True, "qk_layernorm": True, "use_parallel_residual": True},
    ),
}


def make_all(root: Path) -> None:
    """Make every variant's folder below root, with logits.npy in it."""
    import numpy as np
    import torch

    for name in VARIANTS:
        torch.manual_seed(0)
        model = _make_model(name)
        with torch.no_grad():
            for parameter in model.parameters():
                mean, deviation = (0.7, 0.1) if parameter.ndim == 1 else (0.0, 0.3)
                parameter.copy_(torch.randn_like(parameter) * deviation + mean)
            for place, buffer in model.named_buffers():
                if place.endswith("e_score_correction_bias"):
                    buffer.copy_(torch.randn_like(buffer) * 0.3 - 0.5)  # negative, too
            logits = model(input_ids=torch.tensor([IDS])).logits[0]
        model.save_pretrained(root / name)
        np.save(root / name / "logits.npy", logits.numpy())


def _make_model(name: str) -> Any:
    """The variant's model; one that begins with a wrapper's name inside of a model that also sees."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    model_type, extra = VARIANTS[name]
    how = {"dtype": torch.float32, "attn_implementation": "eager"}
    wrapper, _, _ = name.partition("-")
    if wrapper not in _SEES:
        config = AutoConfig.for_model(model_type, **_SIZES, **extra)
        return AutoModelForCausalLM.from_config(config, **how).eval()
    text = {"model_type": model_type, **_SIZES, **extra}
    config = AutoConfig.for_model(wrapper, text_config=text, **_SEES[wrapper])
    return AutoModelForImageTextToText.from_config(config, **how).eval()


if __name__ == "__main__":
    make_all(Path(sys.argv[1]))
