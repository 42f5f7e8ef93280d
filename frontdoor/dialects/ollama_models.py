"""Describes the served model as Ollama does, from the files in its folder; reads no weights.

Ollama calls the format of MLX models `safetensors`. The number of parameters is the index's, or follows from
the size of the weights and the bits of each. The digest changes with the model's files.
"""

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config.model_path import WEIGHTS_INDEX
from frontdoor.dialects.ollama_answers import rfc3339
from frontdoor.state import FrontDoor

FOREVER_SECONDS = 100 * 365 * 86400.0  # the model stays loaded
_TYPES = {"float32": ("F32", 32.0), "float16": ("F16", 16.0), "bfloat16": ("BF16", 16.0)}


@dataclass(frozen=True)
class ModelFiles:
    """What the files of a model say. `modified_unix`: of the newest one."""

    config: Mapping[str, Any]
    num_bytes: int
    num_parameters: int
    modified_unix: float
    digest: str

    @classmethod
    def read(cls, folder: Path, salt: str) -> "ModelFiles":
        """Read a model's folder; `salt` makes the digest another for the same files."""
        config = _read_object(folder / "config.json")
        inner = config.get("text_config")
        config |= inner if isinstance(inner, dict) else {}
        stats = {path.name: path.stat() for path in sorted(folder.iterdir()) if path.is_file()}
        num_bytes = sum(stat.st_size for name, stat in stats.items() if name.endswith(".safetensors"))
        counted = _read_object(folder / WEIGHTS_INDEX).get("metadata")
        counted = counted.get("total_parameters") if isinstance(counted, dict) else None
        sizes = json.dumps([salt, [(name, stat.st_size) for name, stat in stats.items()]])
        return cls(
            config,
            num_bytes,
            counted if type(counted) is int else round(num_bytes * 8 / _weight_type(config)[1]),
            max((stat.st_mtime for stat in stats.values()), default=0.0),
            hashlib.sha256(sizes.encode()).hexdigest(),
        )

    @property
    def family(self) -> str:
        return str(self.config.get("model_type") or "unknown")

    def details(self) -> dict[str, Any]:
        return {
            "parent_model": "",
            "format": "safetensors",
            "family": self.family,
            "families": [self.family],
            "parameter_size": _short(self.num_parameters),
            "quantization_level": _weight_type(self.config)[0],
        }


def list_models(front: FrontDoor) -> list[dict[str, Any]]:
    """Describe the model under each of its names, for GET /api/tags."""
    names = dict.fromkeys((front.model_name, *front.settings.model_alias_list))
    files = _files(front)
    return [
        {**_named(name, files), "modified_at": rfc3339(files.modified_unix)} for name in names if name != "*"
    ]


def list_running(front: FrontDoor) -> list[dict[str, Any]]:
    """Describe the loaded model, for GET /api/ps; none while the ring is not ready."""
    if not front.ring_status.readiness().is_ready:
        return []
    files = _files(front)
    running = {
        "expires_at": rfc3339(time.time() + FOREVER_SECONDS),
        "size_vram": files.num_bytes,
        "context_length": front.context.max_tokens,
    }
    return [{**_named(front.model_name, files), **running}]


def show_model(front: FrontDoor) -> dict[str, Any]:
    """Describe the model in detail, for POST /api/show; `template` is the chat template, in Jinja."""
    files, tokenizer = _files(front), front.tokenizer
    context = front.context.max_tokens
    # Ollama has tools only where a template lists them; here a chat of any model may have them.
    can = {
        "completion": True,
        "tools": tokenizer.has_chat_template,
        "insert": tokenizer.can_fill_in,
        "thinking": tokenizer.formats.reasoning is not None or tokenizer.can_set_effort("medium"),
    }
    return {
        "modelfile": f"# MODEL_REPO in .env sets the model\nFROM {front.public_model_repo}\n",
        "parameters": f"num_ctx                        {context}",
        "template": tokenizer.chat_template or "{{ .Prompt }}",
        "details": files.details(),
        "model_info": _model_info(files, context),
        "capabilities": [name for name, is_there in can.items() if is_there],
        "modified_at": rfc3339(files.modified_unix),
    }


def _files(front: FrontDoor) -> ModelFiles:
    return ModelFiles.read(front.settings.model_dir, front.tokenizer.hash)


def _named(name: str, files: ModelFiles) -> dict[str, Any]:
    return {
        "name": name,
        "model": name,
        "size": files.num_bytes,
        "digest": files.digest,
        "details": files.details(),
    }


def _model_info(files: ModelFiles, context: int) -> dict[str, Any]:
    config, family = files.config, files.family
    known = {
        "block_count": config.get("num_hidden_layers"),
        "embedding_length": config.get("hidden_size"),
        "feed_forward_length": config.get("intermediate_size"),
        "attention.head_count": config.get("num_attention_heads"),
        "attention.head_count_kv": config.get("num_key_value_heads"),
        "vocab_size": config.get("vocab_size"),
    }
    return {
        "general.architecture": family,
        "general.parameter_count": files.num_parameters,
        f"{family}.context_length": context,
        **{f"{family}.{name}": value for name, value in known.items() if type(value) is int},
    }


def _weight_type(config: Mapping[str, Any]) -> tuple[str, float]:
    """Return the name of the weights' type, and the bits of each with its share of scale and bias."""
    packed = config.get("quantization") or config.get("quantization_config")
    bits = packed.get("bits") if isinstance(packed, Mapping) else None
    if isinstance(packed, Mapping) and type(bits) is int and bits > 0:
        group = packed.get("group_size")
        return f"int{bits}", bits + (32 / group if type(group) is int and group > 0 else 0)
    return _TYPES.get(str(config.get("torch_dtype") or config.get("dtype")), ("unknown", 16.0))


def _short(number: int) -> str:
    """Write a number of parameters as Ollama does: 134.5M, 7.2B."""
    for size, letter in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if number >= size:
            return f"{number / size:.1f}{letter}"
    return str(number)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        read = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return read if isinstance(read, dict) else {}
