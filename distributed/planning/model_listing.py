"""Checks by the names of a model's files, before any is read, that none is missing for serving.

The same check for a folder and for a repository of the Hub. Knows nothing of the files' contents.
"""

from __future__ import annotations

from collections.abc import Collection
from fnmatch import fnmatch

from config.model_path import WEIGHTS_INDEX, WEIGHTS_PATTERN
from distributed.planning.model_errors import BadCheckpoint, UnsupportedModel

_CONVERT = "convert them to safetensors with `mlx_lm.convert --hf-path …`"
# pattern -> description of such files, in folders without weights that can be served.
_OTHER_WEIGHTS = {
    "adapter_model*": "only an adapter (LoRA): fuse it with its model first, with `mlx_lm.fuse`",
    "*.gguf": "only GGUF weights: use the repository or folder that they were made from",
    "*.bin": f"only PyTorch weights: {_CONVERT}",
    "*.pt": f"only PyTorch weights: {_CONVERT}",
    "*.pth": f"only PyTorch weights: {_CONVERT}",
    "*.safetensors": f"safetensors under other names than {WEIGHTS_PATTERN}",
    "*.npz": "only NumPy weights",
    "*.h5": "only TensorFlow weights",
    "*.msgpack": "only Flax weights",
    "*.onnx": "only ONNX weights",
}
_TO_JSON = (
    "`python -c \"from transformers import AutoTokenizer as A; A.from_pretrained('FOLDER').save_pretrained("
    "'FOLDER')\"` writes one of it"
)
_CODE = (
    "the code that reads it is the model's own and is never run: take a conversion that has tokenizer.json"
)
# pattern -> what to do about folders with such a tokenizer alone; the first that matches counts.
_OTHER_TOKENIZERS = {
    "*.tiktoken": _CODE,
    "tiktoken.model": _CODE,
    "tekken.json": _TO_JSON,
    "*.model": _TO_JSON,
    "vocab.json": _TO_JSON,
    "vocab.txt": _TO_JSON,
}


def check_config_listed(where: str, names: Collection[str]) -> None:
    """Check that there is a config.json.

    Raises:
        UnsupportedModel: it is missing, and there are weights of another format.
        BadCheckpoint: it is missing.
    """
    if "config.json" in names:
        return
    if other := _name_other_weights(names):
        raise UnsupportedModel(f"{where} has no config.json; it holds {other}")
    raise BadCheckpoint(f"{where} has no config.json: it is not a model")


def check_files_listed(where: str, names: Collection[str]) -> None:
    """Check that there are weights as safetensors, and a tokenizer.

    Raises:
        UnsupportedModel: there are only weights or tokenizer files of another format.
        BadCheckpoint: there are no weights.
    """
    if WEIGHTS_INDEX not in names and not any(fnmatch(name, WEIGHTS_PATTERN) for name in names):
        if other := _name_other_weights(names):
            raise UnsupportedModel(f"{where} has no {WEIGHTS_PATTERN}; it holds {other}")
        raise BadCheckpoint(f"{where} has no {WEIGHTS_PATTERN}: it holds no weights")
    if "tokenizer.json" not in names:
        raise UnsupportedModel(f"{where} has no tokenizer.json{_describe_other_tokenizer(names)}")


def _describe_other_tokenizer(names: Collection[str]) -> str:
    for pattern, what in _OTHER_TOKENIZERS.items():
        if found := sorted(name for name in names if fnmatch(name, pattern)):
            return f" ({found[0]} alone is not served); {what}"
    return ", and no other tokenizer"


def _name_other_weights(names: Collection[str]) -> str:
    for pattern, what in _OTHER_WEIGHTS.items():
        if found := sorted(name for name in names if fnmatch(name, pattern)):
            return f"{what} ({found[0]})"
    return ""
