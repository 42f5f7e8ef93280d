"""Tiny model folders of each served family: seeded random weights and a byte-level tokenizer.

Weights are scaled so that greedy text wanders (no fixed point after two tokens) and the two best logits are
apart.
"""

import atexit
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from prompts.mlx_lm_import import import_mlx_lm

VOCAB_SIZE = 320
CHAT_TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant: "
TOKENIZER_CONFIG = {
    "bos_token": "<bos>",
    "eos_token": "<eos>",
    "tokenizer_class": "PreTrainedTokenizerFast",
}

_COMMON = {
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
_YARN = {
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
    "model_type": "deepseek_v2",
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
    "rope_scaling": _YARN,
}
_QWEN_MOE = {
    "model_type": "qwen3_moe",
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [1],
    "moe_intermediate_size": 64,
    "norm_topk_prob": True,
}

# name: (config beyond _COMMON, bits of packed weights or None)
VARIANTS: dict[str, tuple[dict[str, Any], int | None]] = {
    "llama": ({"model_type": "llama", "num_key_value_heads": 2}, None),
    "llama-tied": ({"model_type": "llama", "num_key_value_heads": 2, "tie_word_embeddings": True}, None),
    "llama-8bit": ({"model_type": "llama", "num_key_value_heads": 2}, 8),
    "llama-4bit-tied": ({"model_type": "llama", "num_key_value_heads": 2, "tie_word_embeddings": True}, 4),
    "ministral3": (
        {"model_type": "ministral3", "num_key_value_heads": 2, "rope_parameters": _MISTRAL_ROPE},
        None,
    ),
    "qwen2": ({"model_type": "qwen2", "num_key_value_heads": 2, "tie_word_embeddings": True}, None),
    "qwen3": ({"model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 32}, None),
    "qwen3-8bit": ({"model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 32}, 8),
    "qwen3_moe": (_QWEN_MOE, None),
    "qwen3_moe-8bit": (_QWEN_MOE, 8),
    "deepseek_v2": (_DEEPSEEK, None),
    "deepseek_v2-8bit": (_DEEPSEEK, 8),
    "deepseek_v2-q_lora": ({**_DEEPSEEK, "q_lora_rank": 48, "attention_bias": True}, None),
    "deepseek_v2-q_lora-8bit": ({**_DEEPSEEK, "q_lora_rank": 64, "n_shared_experts": None}, 8),
    "deepseek_v2-groups": (
        {**_DEEPSEEK, "topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2}
        | {"routed_scaling_factor": 16.0, "first_k_dense_replace": 2, "num_attention_heads": 6},
        None,
    ),
    "deepseek_v2-mscale": (
        {**_DEEPSEEK, "rope_scaling": {**_YARN, "mscale": 1.0, "mscale_all_dim": 0.5}},
        None,
    ),
    "deepseek_v2-sparse-freq": ({**_DEEPSEEK, "moe_layer_freq": 2, "first_k_dense_replace": 0}, None),
}


@cache
def shared_checkpoint(variant: str, **overrides: Any) -> Path:
    """Make the variant's folder once for all tests of this process; they leave it as it is."""
    root = Path(tempfile.mkdtemp(prefix="checkpoint-"))
    atexit.register(shutil.rmtree, root)
    return make_checkpoint(root / f"tiny-{variant}", variant, **overrides)


def make_checkpoint(
    folder: Path, variant: str, *, seed: int = 0, num_files: int = 2, **overrides: Any
) -> Path:
    """Write the variant's model folder and return it.

    Args:
        num_files: safetensors files to spread the tensors over.
        overrides: config entries that differ from the variant's.
    """
    extra, bits = VARIANTS[variant]
    config = _COMMON | extra | overrides
    model = _random_model(config, seed)
    if bits:
        nn.quantize(model, group_size=32, bits=bits)
        quantization = {"group_size": 32, "bits": bits, "mode": "affine"}
        config |= {"quantization": quantization, "quantization_config": quantization}
    folder.mkdir(parents=True, exist_ok=True)
    write_weights(folder, dict(tree_flatten(model.parameters())), num_files)
    (folder / "config.json").write_text(json.dumps(config))
    make_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_CONFIG))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return folder


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


def read_weights(folder: Path) -> dict[str, mx.array]:
    """Read all tensors of a folder."""
    files = [mx.load(str(file)) for file in folder.glob("*.safetensors")]
    return {name: array for weights in files for name, array in weights.items()}


def cast_weights(folder: Path, dtype: mx.Dtype) -> Path:
    """Store the floats of a folder of one file in another type."""
    weights = {
        name: array.astype(dtype) if mx.issubdtype(array.dtype, mx.floating) else array
        for name, array in read_weights(folder).items()
    }
    mx.eval(weights)
    write_weights(folder, weights)
    return folder


def edit_config(folder: Path, *removed: str, **changes: Any) -> None:
    """Remove keys of a folder's config.json and change others."""
    config = json.loads((folder / "config.json").read_text())
    kept = {key: value for key, value in config.items() if key not in removed}
    (folder / "config.json").write_text(json.dumps(kept | changes))


def reference_model(folder: Path, dtype: mx.Dtype = mx.float32) -> Any:
    """Load mlx-lm's own model of the folder whole."""
    config = json.loads((folder / "config.json").read_text())
    model = _make_model(config)
    weights = model.sanitize(read_weights(folder))
    if packing := config.get("quantization"):
        nn.quantize(
            model,
            packing["group_size"],
            packing["bits"],
            class_predicate=lambda path, _: packing.get(path, f"{path}.scales" in weights),
        )
    model.load_weights(list(weights.items()))
    model.set_dtype(dtype)
    return model


@cache
def make_tokenizer() -> Tokenizer:
    """Make a byte-level tokenizer: 0 to 255 are the bytes, 256 begins, 257 ends, the rest mean nothing."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {symbol: i for i, symbol in enumerate(alphabet)} | {"<bos>": 256, "<eos>": 257}
    vocab |= {f"<unused{i}>": i for i in range(258, VOCAB_SIZE)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in ("<bos>", "<eos>")])
    return tokenizer


def _random_model(config: dict[str, Any], seed: int) -> Any:
    mx.random.seed(seed)
    model = _make_model(config)
    model.apply(_rescaled)
    model.model.norm.weight = 4 * model.model.norm.weight  # sets logits apart
    model.set_dtype(mx.float32)
    mx.eval(model.parameters())
    return model


def _make_model(config: dict[str, Any]) -> Any:
    module = import_mlx_lm(f"models.{config['model_type']}")
    return module.Model(module.ModelArgs.from_dict(config))


def _rescaled(array: mx.array) -> mx.array:
    """Give matrices unit gain and some more, vectors (norms, biases) a spread around what they were."""
    if array.ndim < 2:
        return array + 0.2 * mx.random.normal(array.shape)
    return mx.random.normal(array.shape) * 1.2 * array.shape[-1] ** -0.5


def make_poisoned(folder: Path, variant: str, token_id: int, **overrides: Any) -> Path:
    """Make a model folder in which one token's embedding is NaN; not tied, or every draw would be."""
    make_checkpoint(folder, variant, num_files=1, tie_word_embeddings=False, **overrides)
    weights, name = read_weights(folder), "model.embed_tokens.weight"
    weights[name] = mx.where(mx.arange(len(weights[name]))[:, None] == token_id, mx.nan, weights[name])
    mx.eval(weights)
    write_weights(folder, weights)
    return folder
