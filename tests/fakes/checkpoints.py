"""Tiny model folders: the self-test's seeded models in the variants that tests need, and broken ones."""

import atexit
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from distributed.self_test.seeded_models import (
    FAMILY_CONFIGS,
    VOCAB_SIZE,
    YARN,
    make_model,
    make_model_folder,
    make_tokenizer,
    write_weights,
)

__all__ = ["VOCAB_SIZE", "make_tokenizer", "write_weights"]

_DEEPSEEK = FAMILY_CONFIGS["deepseek_v2"]

# name: (config, bits of packed weights or None)
VARIANTS: dict[str, tuple[dict[str, Any], int | None]] = {
    **{name: (config, None) for name, config in FAMILY_CONFIGS.items()},
    "llama-tied": ({**FAMILY_CONFIGS["llama"], "tie_word_embeddings": True}, None),
    "llama-8bit": (FAMILY_CONFIGS["llama"], 8),
    "llama-4bit-tied": ({**FAMILY_CONFIGS["llama"], "tie_word_embeddings": True}, 4),
    "qwen3-8bit": (FAMILY_CONFIGS["qwen3"], 8),
    "qwen3_moe-8bit": (FAMILY_CONFIGS["qwen3_moe"], 8),
    "deepseek_v2-8bit": (_DEEPSEEK, 8),
    "deepseek_v2-q_lora": ({**_DEEPSEEK, "q_lora_rank": 48, "attention_bias": True}, None),
    "deepseek_v2-q_lora-8bit": ({**_DEEPSEEK, "q_lora_rank": 64, "n_shared_experts": None}, 8),
    "deepseek_v2-groups": (
        {**_DEEPSEEK, "topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2}
        | {"routed_scaling_factor": 16.0, "first_k_dense_replace": 2, "num_attention_heads": 6},
        None,
    ),
    "deepseek_v2-mscale": (
        {**_DEEPSEEK, "rope_scaling": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.5}},
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
    config, bits = VARIANTS[variant]
    return make_model_folder(folder, {**config, **overrides}, bits=bits, seed=seed, num_files=num_files)


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


def reference_model(folder: Path, dtype: mx.Dtype = mx.float32, *, is_sanitized: bool = True) -> Any:
    """Load mlx-lm's own model of the folder whole."""
    config = json.loads((folder / "config.json").read_text())
    model = make_model(config)
    weights = read_weights(folder)
    if is_sanitized and hasattr(model, "sanitize"):
        weights = model.sanitize(weights)
    if packing := config.get("quantization"):
        nn.quantize(
            model,
            packing["group_size"],
            packing["bits"],
            mode=packing.get("mode", "affine"),
            class_predicate=lambda path, _: packing.get(path, f"{path}.scales" in weights),
        )
    model.load_weights(list(weights.items()))
    model.set_dtype(dtype)
    for module in model.modules() if config.get("n_group", 1) > 1 else ():
        if "e_score_correction_bias" in module:
            # mlx-lm hides experts of other groups behind 0; where all scores are above it, it is right
            bias = module.e_score_correction_bias.astype(mx.float32)
            module.e_score_correction_bias = bias - mx.minimum(bias.min(), 0)
    return model


def make_poisoned(folder: Path, variant: str, token_id: int, **overrides: Any) -> Path:
    """Make a model folder in which one token's embedding is NaN; not tied, or every draw would be."""
    make_checkpoint(folder, variant, num_files=1, tie_word_embeddings=False, **overrides)
    weights, name = read_weights(folder), "model.embed_tokens.weight"
    weights[name] = mx.where(mx.arange(len(weights[name]))[:, None] == token_id, mx.nan, weights[name])
    mx.eval(weights)
    write_weights(folder, weights)
    return folder
