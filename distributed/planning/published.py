"""Published models that can be planned without their files: configs, and the sizes of their tensors.

CONFIGS has config.json's keys that sizes and lengths depend on, as published, under the name that follows the
owner's on the Hub. published_sizes.json has the tensors, as mlx-lm's class of the model makes them:

    {NAME: {"ends": {TENSOR: "BF16 5120"}, "3-91": {"mlp.gate.weight": "BF16 160x5120"}}}

where "3-91" are layers with the same tensors. `python -m distributed.models.published --write` makes it from
CONFIGS. No MLX, no network.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from distributed.planning.checkpoint import TensorInfo
from distributed.planning.families.model_config import normalise_config
from distributed.planning.families.served import FAMILIES

SIZES_PATH = Path(__file__).with_name("published_sizes.json")
ENDS = "ends"  # embeddings, last norm and head
DTYPE_BYTES = {"F32": 4, "BF16": 2, "U32": 4, "U8": 1}

_Q4 = {"quantization": {"group_size": 64, "bits": 4}}
_Q8 = {"quantization": {"group_size": 64, "bits": 8}}
_YARN = {"type": "yarn", "original_max_position_embeddings": 4096, "beta_slow": 1}
_DEEPSEEK = {
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "moe_layer_freq": 1,
    "rope_theta": 10000,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}
_V2_LITE = _DEEPSEEK | {
    "model_type": "deepseek_v2",
    "vocab_size": 102400,
    "hidden_size": 2048,
    "intermediate_size": 10944,
    "moe_intermediate_size": 1408,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "num_experts_per_tok": 6,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "topk_method": "greedy",
    "scoring_func": "softmax",
    "norm_topk_prob": False,
    "routed_scaling_factor": 1.0,
    "q_lora_rank": None,
    "max_position_embeddings": 163840,
    "rope_scaling": {**_YARN, "factor": 40, "beta_fast": 32, "mscale": 0.707, "mscale_all_dim": 0.707},
}
_V3 = _DEEPSEEK | {
    "model_type": "deepseek_v3",
    "vocab_size": 129280,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "first_k_dense_replace": 3,
    "n_group": 8,
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "q_lora_rank": 1536,
    "max_position_embeddings": 163840,
    "rope_scaling": {**_YARN, "factor": 40, "beta_fast": 32, "mscale": 1.0, "mscale_all_dim": 1.0},
}
_KIMI_K2 = _V3 | {
    "model_type": "kimi_k2",
    "vocab_size": 163840,
    "num_attention_heads": 64,
    "num_key_value_heads": 64,
    "n_routed_experts": 384,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 2.827,
    "max_position_embeddings": 131072,
    "rope_theta": 50000,
    "rope_scaling": {**_YARN, "factor": 32, "beta_fast": 1, "mscale": 1.0, "mscale_all_dim": 1.0},
}
_GLM_46 = {
    "model_type": "glm4_moe",
    "vocab_size": 151552,
    "hidden_size": 5120,
    "intermediate_size": 12288,
    "moe_intermediate_size": 1536,
    "num_hidden_layers": 92,
    "num_attention_heads": 96,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "attention_bias": True,
    "use_qk_norm": True,
    "n_routed_experts": 160,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "first_k_dense_replace": 3,
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "max_position_embeddings": 202752,
    "partial_rotary_factor": 0.5,
    "rope_theta": 1000000,
    "rope_scaling": None,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
_QWEN3_CODER_30B = {
    "model_type": "qwen3_moe",
    "vocab_size": 151936,
    "hidden_size": 2048,
    "intermediate_size": 5472,
    "moe_intermediate_size": 768,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "norm_topk_prob": True,
    "max_position_embeddings": 262144,
    "rope_theta": 10000000,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}
_MXFP4 = {"group_size": 32, "bits": 4, "mode": "mxfp4"}
_GPT_OSS_120B = {
    "model_type": "gpt_oss",
    "vocab_size": 201088,
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "num_hidden_layers": 36,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "attention_bias": True,
    "num_local_experts": 128,
    "num_experts_per_tok": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 18,
    "sliding_window": 128,
    "max_position_embeddings": 131072,
    "rope_theta": 150000,
    "rope_scaling": {**_YARN, "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False},
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    # The group size of all but the experts is an estimate: mlx_lm.convert's default.
    "quantization": _Q8["quantization"]
    | {
        f"model.layers.{layer}.mlp.experts.{part}_proj": _MXFP4
        for layer in range(36)
        for part in ("gate", "up", "down")
    },
}
CONFIGS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "DeepSeek-Coder-V2-Lite-Instruct-8bit": _V2_LITE | _Q8,
        "DeepSeek-V3.1-4bit": _V3 | _Q4,
        "GLM-4.6-4bit": _GLM_46 | _Q4,
        "GLM-4.6-8bit": _GLM_46 | _Q8,
        "Kimi-K2-Instruct-4bit": _KIMI_K2 | _Q4,
        "Qwen3-Coder-30B-A3B-Instruct-4bit": _QWEN3_CODER_30B | _Q4,
        "Qwen3-Coder-30B-A3B-Instruct-8bit": _QWEN3_CODER_30B | _Q8,
        "gpt-oss-120b-MXFP4-Q8": _GPT_OSS_120B,
    }
)


def list_published() -> list[str]:
    """Return the names of the models that are served."""
    return [name for name, config in CONFIGS.items() if config["model_type"] in FAMILIES]


def find_published(repo: str) -> str | None:
    """Return the name of the model of a repository, whoever owns it; None: it is not one of these."""
    wanted = repo.rpartition("/")[2].lower()
    return next((name for name in CONFIGS if name.lower() == wanted), None)


def read_published(name: str) -> tuple[dict[str, Any], dict[str, TensorInfo]]:
    """Return config and tensors of a model, as `read_model_files` does of a folder.

    Raises:
        UnsupportedModel: its type is not served.
    """
    sizes = json.loads(SIZES_PATH.read_text(encoding="utf-8"))
    return normalise_config(CONFIGS[name], name), expand_sizes(sizes[name])


def expand_sizes(sizes: Mapping[str, Mapping[str, str]]) -> dict[str, TensorInfo]:
    """Return the tensors of a model's entry in published_sizes.json."""
    tensors: dict[str, TensorInfo] = {}
    for place, parts in sizes.items():
        if place == ENDS:
            tensors |= {tensor: _parse(size) for tensor, size in parts.items()}
            continue
        first, last = map(int, place.split("-"))
        for part, size in parts.items():
            tensors |= {f"model.layers.{i}.{part}": _parse(size) for i in range(first, last + 1)}
    return tensors


def _parse(size: str) -> TensorInfo:
    dtype, _, shape = size.partition(" ")
    dims = tuple(map(int, shape.split("x")))
    return TensorInfo("", dtype, dims, math.prod(dims) * DTYPE_BYTES[dtype])
