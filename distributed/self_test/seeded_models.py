"""Model folders made on the spot: seeded random weights in mlx-lm's own classes, and a byte-level tokenizer.

Weights are scaled so that greedy text wanders (no fixed point after two tokens) and the two best logits are
apart. FAMILY_CONFIGS has a tiny model of the commonest types. Knows no stages.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from distributed.models.stage_model import drop_head
from distributed.planning.families.served import FAMILIES
from distributed.planning.stage_files import NORMS
from prompts.mlx_lm_import import import_mlx_lm

VOCAB_SIZE = 320
GROUP_SIZE = 32
CHAT_TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant: "
TOKENIZER_CONFIG = {
    "bos_token": "<bos>",
    "eos_token": "<eos>",
    "tokenizer_class": "PreTrainedTokenizerFast",
}

COMMON = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 4096,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "bos_token_id": 256,
    "eos_token_id": 257,
}
YARN = {
    "type": "yarn",
    "factor": 40,
    "original_max_position_embeddings": 64,  # small, so that yarn's ramp lies inside the rope head
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 0.707,
    "mscale_all_dim": 0.707,
}
_MISTRAL_ROPE = {
    "rope_type": "default",
    "rope_theta": 10000.0,
    "llama_4_scaling_beta": 0.1,
    "original_max_position_embeddings": 8,
}
_DEEPSEEK = {
    "num_key_value_heads": 4,
    "moe_intermediate_size": 64,
    "n_shared_experts": 2,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "routed_scaling_factor": 1.0,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "topk_method": "greedy",
    "n_group": 1,
    "topk_group": 1,
    "kv_lora_rank": 64,
    "q_lora_rank": None,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 32,
    "v_head_dim": 24,
    "attention_bias": False,
    "rope_scaling": YARN,
}
_QWEN_MOE = {
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [1],
    "moe_intermediate_size": 64,
    "norm_topk_prob": True,
}
_BEYOND_COMMON: dict[str, dict[str, Any]] = {
    "deepseek_v2": _DEEPSEEK,
    "llama": {"num_key_value_heads": 2},
    "ministral3": {"num_key_value_heads": 2, "rope_parameters": _MISTRAL_ROPE},
    "mistral": {"num_key_value_heads": 2, "sliding_window": None},
    "qwen2": {"num_key_value_heads": 2, "tie_word_embeddings": True},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 32},
    "qwen3_moe": _QWEN_MOE,
}
FAMILY_CONFIGS: Mapping[str, dict[str, Any]] = MappingProxyType(
    {name: {**COMMON, **beyond, "model_type": name} for name, beyond in _BEYOND_COMMON.items()}
)


def make_model_folder(
    folder: Path,
    config: dict[str, Any],
    *,
    bits: int | None = None,
    mode: str = "affine",
    finer: str = "",
    dtype: Any = mx.float32,
    seed: int = 0,
    num_files: int = 1,
) -> Path:
    """Write a model folder and return it.

    Args:
        bits: of packed weights; None: plain.
        mode: of packing, as MLX names it.
        finer: pattern of the paths of modules that are packed with 8 bits instead, and listed in the config.
        dtype: of the floats, scales of packed weights included.
        num_files: safetensors files to spread the tensors over.
    """
    mx.random.seed(seed)
    model = make_model(config)
    model.apply(_rescaled)
    inner = model.backbone if "backbone" in model else model.model
    norm = next(inner[name] for name in NORMS if name in inner)
    norm.weight = 4 * norm.weight  # sets logits apart
    model.set_dtype(dtype)
    if bits:
        quantization = _pack(model, bits, mode, finer)
        config = {**config, "quantization": quantization, "quantization_config": quantization}
    weights = dict(tree_flatten(model.parameters()))
    for array in weights.values():  # one by one: what a tensor is made of is larger than itself
        mx.eval(array)
    folder.mkdir(parents=True, exist_ok=True)
    write_weights(folder, weights, num_files)
    make_tokenizer(config["vocab_size"]).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_CONFIG))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _pack(model: nn.Module, bits: int, mode: str, finer: str) -> dict[str, Any]:
    """Pack a model's weights, lazily; return what mlx-lm writes into the config about it."""
    common = {"group_size": GROUP_SIZE, "bits": bits, "mode": mode}
    entries: dict[str, dict[str, Any]] = {}

    def choose(path: str, module: nn.Module) -> bool | dict[str, Any]:
        if hasattr(module, "to_quantized") and finer and re.search(finer, path):
            entries[path] = {"group_size": GROUP_SIZE, "bits": 8}
            return dict(entries[path])
        return hasattr(module, "to_quantized")

    nn.quantize(model, **common, class_predicate=choose)
    return {**common, **entries}


def make_model(config: dict[str, Any]) -> Any:
    """Make mlx-lm's own model of a config, lazily."""
    runs_as = FAMILIES[config["model_type"]].runs_as
    module = import_mlx_lm(f"models.{runs_as}")
    model = module.Model(module.ModelArgs.from_dict(config))
    if config.get("tie_word_embeddings"):
        drop_head(model)
    return model


def write_weights(folder: Path, weights: dict[str, mx.array], num_files: int = 1) -> None:
    """Write safetensors files and their index."""
    names = sorted(weights)
    weight_map: dict[str, str] = {}
    size = -(-len(names) // num_files)
    for i in range(num_files):
        file = f"model-{i + 1:05d}-of-{num_files:05d}.safetensors"
        part = {name: weights[name] for name in names[i * size : (i + 1) * size]}
        mx.save_safetensors(str(folder / file), part, metadata={"format": "mlx"})
        weight_map |= dict.fromkeys(part, file)
    total = sum(array.nbytes for array in weights.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@cache
def make_tokenizer(vocab_size: int = VOCAB_SIZE) -> Tokenizer:
    """Make a byte-level tokenizer: 0 to 255 are the bytes, 256 begins, 257 ends, the rest mean nothing."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {symbol: i for i, symbol in enumerate(alphabet)} | {"<bos>": 256, "<eos>": 257}
    vocab |= {f"<unused{i}>": i for i in range(258, vocab_size)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in ("<bos>", "<eos>")])
    return tokenizer


def _rescaled(array: mx.array) -> mx.array:
    """Give matrices unit gain and some more, vectors (norms, biases) a spread around what they were."""
    if array.ndim < 2:
        return array + 0.2 * mx.random.normal(array.shape)
    return mx.random.normal(array.shape) * 1.2 * array.shape[-1] ** -0.5
