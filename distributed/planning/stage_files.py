"""The tensors and files of a model that a stage needs, from its index alone. No MLX, no weights.

A stage needs the small files (config, index, tokenizer) and the safetensors files that hold its own tensors.
Files that only stages on other hosts need may be missing.
"""

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config.model_path import SMALL_PATTERNS
from distributed.planning.checkpoint import TensorInfo, is_tied, read_config, read_raw_header, tensor_files
from distributed.planning.families.model_config import MADE_UP_TYPES
from distributed.planning.model_errors import BadCheckpoint, UnsupportedModel

# Types of stored tensors; the last two are MLX's packed weights and their scales.
STORED_TYPES = ("F32", "F16", "BF16", "U32", "U8")
SUMS_NAME = ".sums.json"  # cluster/hosts/remote_scripts/file_sums.py writes it

# What sees images, and layers that predict more than the next token.
_NOT_SERVED = (
    *("vision_tower.", "multi_modal_projector.", "mm_projector.", "visual.", "mtp_layers.", "mtp."),
    *("audio_tower.", "embed_audio.", "embed_vision.", "vision_embedder."),
    *("vision_adapter.", "vision_projection."),
)
# What the classes call the embeddings, and the norm behind the last layer.
EMBEDDINGS = ("embed_tokens", "embeddings")
NORMS = ("norm", "embedding_norm", "norm_f", "final_layernorm")

LAYER = re.compile(r"model\.layers\.(\d+)\.(.*)")


@dataclass(frozen=True)
class StageCut:
    """The part of a model that one stage owns."""

    layers: range
    is_first: bool
    is_last: bool
    is_tied: bool

    @property
    def has_own_head(self) -> bool:
        """Whether the stage holds the head's weights apart from its embeddings."""
        return self.is_last and not (self.is_tied and self.is_first)

    def local_name(self, name: str) -> str | None:
        """Return the stage's own name of a tensor of the checkpoint; None: another stage owns it."""
        if match := LAYER.fullmatch(name):
            return f"inner.layers.{match[1]}.{match[2]}" if int(match[1]) in self.layers else None
        place, _, rest = name.removeprefix("model.").partition(".")
        if place in EMBEDDINGS and self.is_first:
            return f"inner.{place}.{rest}"
        if self.is_last and place in (EMBEDDINGS if self.is_tied else ("lm_head",)):
            return f"head.{rest}"
        return f"inner.{place}.{rest}" if place in NORMS and self.is_last else None


@dataclass(frozen=True)
class WeightsMark:
    """Hashes of a stage's weight files; an empty one is unknown.

    `headers` covers name, size and header of each file. `contents` covers the files' whole bytes, as verified
    when they were copied or fetched.
    """

    headers: str = ""
    contents: str = ""

    def differs_from(self, other: "WeightsMark") -> str | None:
        """Return the name of the first known hash that differs; None if none does."""
        for what in ("headers", "contents"):
            ours, theirs = getattr(self, what), getattr(other, what)
            if ours and theirs and ours != theirs:
                return what
        return None


def make_cut(
    config: Mapping[str, Any], tensors: Collection[str], layers: Sequence[range], rank: int
) -> StageCut:
    """Return a rank's part of the model; `layers` is by rank, rank 0 is the last stage."""
    tied = is_tied(config, tensors)
    return StageCut(layers[rank], is_first=rank == len(layers) - 1, is_last=rank == 0, is_tied=tied)


def check_tensors(name: str, config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> None:
    """Check that the model has a place for each tensor, and tensors for each layer, embeddings and head.

    Raises:
        UnsupportedModel: a tensor has a type, or belongs to a part of a model, that is not served.
        BadCheckpoint: a layer, the embeddings, the last norm or the head are missing.
    """
    if config["model_type"] in MADE_UP_TYPES:
        return
    cut = make_cut(config, tensors, [range(config["num_hidden_layers"])], 0)
    for tensor, info in tensors.items():
        if _is_unused(tensor, cut):
            continue
        if info.dtype not in STORED_TYPES:
            raise UnsupportedModel(
                f"{name}: {tensor} is stored as {info.dtype}, which is not served; served are "
                f"{', '.join(STORED_TYPES)}"
            )
        if cut.local_name(tensor) is None:
            raise UnsupportedModel(f"{name}: the served {config['model_type']} has no place for {tensor}")
    present = {int(match[1]) for match in map(LAYER.fullmatch, tensors) if match}
    if lost := set(cut.layers) - present:
        raise BadCheckpoint(f"{name} has no weights of layer {min(lost)}")
    _check_layers_beyond(name, tensors, cut)
    ends = [[f"model.{part}.weight" for part in names] for names in (EMBEDDINGS, NORMS)]
    for names in (*ends, *([] if cut.is_tied else [["lm_head.weight"]])):
        if tensors.keys().isdisjoint(names):
            raise BadCheckpoint(f"{name} has no tensor {names[0]}")


def _check_layers_beyond(name: str, tensors: Collection[str], cut: StageCut) -> None:
    """Refuse a layer behind the last one; layers that predict more tokens have tensors that no other has."""
    matches = [match for match in map(LAYER.fullmatch, tensors) if match]
    usual = {match[2] for match in matches if int(match[1]) in cut.layers}
    others = {int(match[1]) for match in matches if match[2] not in usual}
    if beyond := {int(match[1]) for match in matches} - others - set(cut.layers):
        raise BadCheckpoint(
            f"{name} has weights of layer {min(beyond)}, but num_hidden_layers is {len(cut.layers)}"
        )


def _is_unused(tensor: str, cut: StageCut) -> bool:
    """Whether serving ignores a tensor: RoPE tables, tied heads, layers for training, vision towers."""
    layer = LAYER.fullmatch(tensor)
    is_beyond = layer is not None and int(layer[1]) >= cut.layers.stop
    is_aside = tensor.removeprefix("model.").startswith(_NOT_SERVED)
    is_table = tensor.endswith("rotary_emb.inv_freq")
    return is_beyond or is_aside or is_table or (cut.is_tied and tensor == "lm_head.weight")


def weights_of(files: Mapping[str, str], cuts: Iterable[StageCut]) -> tuple[str, ...]:
    """Return the weight files that hold tensors of these stages; `files` is tensor name -> file name."""
    stages = list(cuts)
    return tuple(
        sorted(
            {
                file
                for tensor, file in files.items()
                if any(cut.local_name(tensor) is not None for cut in stages)
            }
        )
    )


def needed_files(folder: Path, layers: Sequence[range], ranks: Iterable[int]) -> tuple[str, ...]:
    """Return the files that these ranks need: the small files and their weight files.

    Args:
        layers: every rank's, indexed by rank.

    Raises:
        BadCheckpoint: config or index are missing.
    """
    config, files = read_config(folder), tensor_files(folder)
    weights = weights_of(files, [make_cut(config, files.keys(), layers, rank) for rank in ranks])
    return (*small_files(folder), *weights)


def small_files(folder: Path) -> tuple[str, ...]:
    """Return the files of a model folder that every host gets: config, index, tokenizer."""
    found = {path.name for pattern in SMALL_PATTERNS for path in folder.glob(pattern) if path.is_file()}
    return tuple(sorted(name for name in found if not name.startswith(".")))


def mark_weights(folder: Path, layers: Sequence[range], rank: int, sums_file: Path) -> WeightsMark:
    """Return the mark of a rank's weight files in a folder, from their headers and known sums.

    Raises:
        BadCheckpoint: names the first missing file.
    """
    config, files = read_config(folder), tensor_files(folder)
    names = weights_of(files, [make_cut(config, files.keys(), layers, rank)])
    headers, contents = hashlib.sha256(), hashlib.sha256()
    sums = read_sums(folder, sums_file)
    for name in names:
        header = read_raw_header(folder / name)
        headers.update(f"{name} {(folder / name).stat().st_size} {len(header)}\n".encode() + header)
        contents.update(f"{name} {sums.get(name)}\n".encode())
    is_known = all(name in sums for name in names)
    return WeightsMark(headers.hexdigest(), contents.hexdigest() if is_known else "")


def read_sums(folder: Path, sums_file: Path) -> dict[str, str]:
    """Return the known SHA-256 of files in a folder whose size and time have not changed since."""
    try:
        entries = json.loads(sums_file.read_text("utf-8"))["files"]
        return {
            name: entry["sha256"]
            for name, entry in entries.items()
            if _is_unchanged(folder / name, entry["size"], entry["mtime_ns"])
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def local_sums_file(folder: Path, state_dir: Path) -> Path:
    """Return the path of this machine's sums of a model folder, which may be in the Hub's cache."""
    mark = hashlib.sha256(str(folder).encode()).hexdigest()[:12]
    return state_dir / "models" / f".sums-{mark}.json"


def _is_unchanged(path: Path, size: int, mtime_ns: int) -> bool:
    try:
        found = path.stat()
    except OSError:
        return False
    return (found.st_size, found.st_mtime_ns) == (size, mtime_ns)
