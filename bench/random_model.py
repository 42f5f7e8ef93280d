"""A seeded random deepseek_v2 of about 300 million parameters: a mixture of experts of a size that fits here.

    python -m bench.random_model FOLDER TOKENIZER-FOLDER

No package has such a model with trained weights; the text is noise, but the speed is real. 16 experts of
which 4 are active, latent attention, 12 layers, in float32. The tokenizer is the built-in model's. It runs
as a process of its own, because the rest of the bench imports no MLX.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from bench.setup import Setup, run_module

SEED = 1
NAME = "random-deepseek-v2-300m"
STD = 0.05
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
CONFIG = {
    "model_type": "deepseek_v2",
    "hidden_size": 768,
    "intermediate_size": 2048,
    "moe_intermediate_size": 512,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
    "n_shared_experts": 2,
    "n_routed_experts": 16,
    "num_experts_per_tok": 4,
    "kv_lora_rank": 256,
    "q_lora_rank": None,
    "qk_rope_head_dim": 32,
    "qk_nope_head_dim": 64,
    "v_head_dim": 64,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "topk_method": "greedy",
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 1.0,
    "max_position_embeddings": 16384,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "rope_scaling": {
        "type": "yarn",
        "factor": 4,
        "original_max_position_embeddings": 4096,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 0.707,
        "mscale_all_dim": 0.707,
    },
    "attention_bias": False,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
}


def make_random_model(setup: Setup) -> Path:
    """Return the model's folder below the bench's; make it if it is missing.

    Raises:
        BenchError: it cannot be made.
    """
    folder = setup.folder / "models" / NAME
    if not (folder / "config.json").is_file():
        run_module("making the random model", "bench.random_model", str(folder), str(setup.model_folder))
    return folder


def main(arguments: list[str]) -> int:
    """Write weights and tokenizer, then config.json, which marks the folder as complete."""
    # Imported here, so that the bench itself stays free of MLX.
    import mlx.core as mx
    from mlx.utils import tree_flatten

    from prompts.mlx_lm_import import import_mlx_lm

    folder, source = map(Path, arguments)
    given = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config = {**CONFIG, "vocab_size": given["vocab_size"], "eos_token_id": given["eos_token_id"]}
    deepseek_v2 = import_mlx_lm("models.deepseek_v2")
    mx.random.seed(SEED)
    model = deepseek_v2.Model(deepseek_v2.ModelArgs.from_dict(config))
    weights = {}
    for name, array in tree_flatten(model.parameters()):
        is_norm = "norm" in name
        weights[name] = array if is_norm else (STD * mx.random.normal(array.shape)).astype(mx.float32)
    folder.mkdir(parents=True, exist_ok=True)
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    # mlx_lm.server --pipeline finds the tensors of a rank by the index.
    index = {
        "metadata": {"total_size": sum(array.nbytes for array in weights.values())},
        "weight_map": dict.fromkeys(sorted(weights), "model.safetensors"),
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copy(source / name, folder / name)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    print(f"{sum(array.size for array in weights.values()) / 1e6:.0f} million parameters in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
