"""What the names of a model's files tell before any of them is read: whether all that serving needs is there.

The same for a folder and for a repository of the Hub. Knows nothing of what is in the files.
"""

from __future__ import annotations

from collections.abc import Collection
from fnmatch import fnmatch

from config.model_path import WEIGHTS_INDEX, WEIGHTS_PATTERN
from distributed.planning.model_errors import BadCheckpoint, UnsupportedModel

_CONVERT = "`mlx_lm.convert --hf-path …` makes safetensors of them"
# pattern -> what files of the name are, where there are no weights that are served.
_OTHER_WEIGHTS = {
    "adapter_model*": "an adapter alone (LoRA): fuse it with its model first, `mlx_lm.fuse` does",
    "*.gguf": "weights as GGUF alone: name the repository or folder that they were made of",
    "*.bin": f"weights as PyTorch files alone: {_CONVERT}",
    "*.pt": f"weights as PyTorch files alone: {_CONVERT}",
    "*.pth": f"weights as PyTorch files alone: {_CONVERT}",
    "*.safetensors": f"safetensors under other names than {WEIGHTS_PATTERN}",
    "*.npz": "weights as NumPy files alone",
    "*.h5": "weights for TensorFlow alone",
    "*.msgpack": "weights for Flax alone",
    "*.onnx": "weights as ONNX alone",
}
_OTHER_TOKENIZERS = ("*.tiktoken", "tiktoken.model", "*.model", "vocab.json", "vocab.txt")


def check_config_listed(where: str, names: Collection[str]) -> None:
    """Check that there is a config.json.

    Raises:
        UnsupportedModel: it is not there, and other files tell what this is.
        BadCheckpoint: it is not there.
    """
    if "config.json" in names:
        return
    if other := _name_other_weights(names):
        raise UnsupportedModel(f"{where} has no config.json; it holds {other}")
    raise BadCheckpoint(f"{where} has no config.json: it is not a model")


def check_files_listed(where: str, names: Collection[str]) -> None:
    """Check that there are weights as safetensors, and a tokenizer.

    Raises:
        UnsupportedModel: they are there in another form.
        BadCheckpoint: they are not there.
    """
    if WEIGHTS_INDEX not in names and not any(fnmatch(name, WEIGHTS_PATTERN) for name in names):
        if other := _name_other_weights(names):
            raise UnsupportedModel(f"{where} has no {WEIGHTS_PATTERN}; it holds {other}")
        raise BadCheckpoint(f"{where} has no {WEIGHTS_PATTERN}: it holds no weights")
    if "tokenizer.json" not in names:
        other = next((name for name in sorted(names) if _is_tokenizer(name)), "")
        holds = f" ({other} alone is not served)" if other else ""
        raise UnsupportedModel(
            f"{where} has no tokenizer.json{holds}; where transformers can read its tokenizer, "
            "AutoTokenizer.from_pretrained(…).save_pretrained(…) writes one"
        )


def _is_tokenizer(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in _OTHER_TOKENIZERS)


def _name_other_weights(names: Collection[str]) -> str:
    for pattern, what in _OTHER_WEIGHTS.items():
        if found := sorted(name for name in names if fnmatch(name, pattern)):
            return f"{what} ({found[0]})"
    return ""
