"""A model folder as data: its config.json and the headers of its safetensors files, no weights.

A safetensors file is eight bytes of header length (little-endian), then a JSON header {tensor: {dtype, shape,
data_offsets}}, then the data. model.safetensors.index.json, or without it the headers, name the file of each
tensor. Tensors have the names of a text-only model (tensor_name). Knows nothing of MLX, of stages, or of how
a model runs.
"""

import hashlib
import json
import math
import platform
import struct
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distributed.planning.families.model_config import normalise_config, tensor_name
from distributed.planning.model_errors import BadCheckpoint as BadCheckpoint
from distributed.planning.model_errors import ModelError as ModelError
from distributed.planning.model_errors import UnsupportedModel as UnsupportedModel

INDEX_NAME = "model.safetensors.index.json"
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library itself


@dataclass(frozen=True)
class TensorInfo:
    """The place and size of one tensor; dtype as safetensors names it (F32, BF16, U32, …)."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    num_bytes: int

    @property
    def num_values(self) -> int:
        return math.prod(self.shape)


def read_tensors(folder: Path) -> dict[str, TensorInfo]:
    """Read the place and size of every tensor of the model from the headers of its files.

    Raises:
        BadCheckpoint: a file is missing, cut short, or lacks a tensor that the index names.
    """
    tensors: dict[str, TensorInfo] = {}
    for file in weight_files(folder):
        tensors |= read_header(folder / file)
    missing = sorted(read_index(folder).keys() - tensors.keys())
    if missing:
        raise BadCheckpoint(
            f"{folder}: {len(missing)} tensors of {INDEX_NAME} are in no file, first {missing[0]}"
        )
    return tensors


def tensor_files(folder: Path) -> dict[str, str]:
    """Return tensor name -> file name, from the index alone if there is one."""
    return read_index(folder) or {name: info.file for name, info in read_tensors(folder).items()}


def is_tied(config: Mapping[str, Any], names: Container[str]) -> bool:
    """Whether the head reuses the embeddings."""
    return bool(config.get("tie_word_embeddings", "lm_head.weight" not in names))


def read_config(folder: Path) -> dict[str, Any]:
    """Read config.json in the form of the served classes; see model_config.py.

    Raises:
        BadCheckpoint: it is missing or no JSON object, or a key is missing or of the wrong kind.
        UnsupportedModel: the model type, or a key that changes numbers, is not served.
    """
    path = folder / "config.json"
    return parse_config(_read_bytes(path), str(path))


def parse_config(content: bytes, where: str) -> dict[str, Any]:
    """Parse the bytes of a config.json. Raises as `read_config` does."""
    return normalise_config(_parse_object(content, where), where)


def read_index(folder: Path) -> dict[str, str]:
    """Return tensor name -> file name from the index; empty without one."""
    path = folder / INDEX_NAME
    return parse_index(_read_bytes(path), str(path)) if path.is_file() else {}


def parse_index(content: bytes, where: str) -> dict[str, str]:
    """Return tensor name -> file name from an index's bytes. Raises: BadCheckpoint."""
    weight_map = _parse_object(content, where).get("weight_map")
    if not isinstance(weight_map, dict):
        raise BadCheckpoint(f"{where} has no weight_map")
    return {tensor_name(str(name)): _plain_name(where, str(file)) for name, file in weight_map.items()}


def weight_files(folder: Path) -> list[str]:
    """List the model's safetensors files: those of the index, or all model*.safetensors."""
    files = sorted(set(read_index(folder).values())) or sorted(
        p.name for p in folder.glob("model*.safetensors")
    )
    if not files:
        raise BadCheckpoint(
            f"{folder} holds no model*.safetensors: not a model folder, or not fully downloaded"
        )
    return files


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Read the tensors of one safetensors file from its header."""
    raw = read_raw_header(path)
    try:
        header = json.loads(raw[8:])
        header.pop("__metadata__", None)
        end = max((int(entry["data_offsets"][1]) for entry in header.values()), default=0)
        tensors = {tensor_name(name): _tensor_info(path.name, entry) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadCheckpoint(f"{path} is not a safetensors file: {error}") from error
    size = path.stat().st_size
    if size < len(raw) + end:
        raise BadCheckpoint(f"{path} is cut short: {size} bytes of {len(raw) + end}")
    return tensors


def stored_format(path: Path) -> str | None:
    """Return the format that a safetensors file's metadata name, such as pt or mlx."""
    try:
        return str(json.loads(read_raw_header(path)[8:])["__metadata__"]["format"])
    except (ValueError, KeyError, TypeError):
        return None


def read_raw_header(path: Path) -> bytes:
    """Read a safetensors file up to its data; less of a file that is none. Raises: BadCheckpoint."""
    try:
        with path.open("rb") as file:
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
            return prefix + (file.read(length) if length <= MAX_HEADER_BYTES else b"")
    except FileNotFoundError as error:
        raise missing_file(path) from error


def missing_file(path: Path) -> BadCheckpoint:
    """Return the error for a missing file of the model; it names the host."""
    return BadCheckpoint(
        f"{path} is missing on {platform.node()}: not a model folder, or not fully downloaded or copied; "
        "./launch.sh start continues that"
    )


def hash_files(paths: Iterable[Path]) -> str:
    """Return the SHA-256 of the files' names and contents, as hex."""
    digest = hashlib.sha256()
    for path in paths:
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def _tensor_info(file: str, entry: dict[str, Any]) -> TensorInfo:
    start, end = (int(offset) for offset in entry["data_offsets"])
    return TensorInfo(file, str(entry["dtype"]), tuple(int(n) for n in entry["shape"]), end - start)


def _plain_name(where: str, file: str) -> str:
    if Path(file).name != file:
        raise BadCheckpoint(f"{where} names {file!r}: weight files must lie in the model folder itself")
    return file


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise missing_file(path) from error
    except OSError as error:
        raise BadCheckpoint(f"{path} cannot be read: {error.strerror}") from error


def _parse_object(content: bytes, where: str) -> dict[str, Any]:
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BadCheckpoint(f"{where} is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise BadCheckpoint(f"{where} is not a JSON object")
    return data
