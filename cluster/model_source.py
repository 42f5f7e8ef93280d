"""What is known of a model before it is loaded or even here: its config and the headers of its weights.

From its folder, or, where it is not on this machine yet, from the Hub: config.json, the index, and the
headers of the safetensors files, a few hundred kilobytes. Fetches no weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.errors import ClusterError
from config import ModelNotReady, Settings
from config.model_path import is_folder_name, missing_files
from distributed.checkpoint import ModelError, TensorInfo, read_config, read_tensors
from distributed.model_shape import ModelShape, make_shape

HUB_LIMIT_S = 20.0
NEEDED_KEYS = ("model_type", "num_hidden_layers", "hidden_size", "vocab_size")


class ModelUnknown(ClusterError):
    """Nothing can be told of the model: it is not here, and the Hub does not tell."""


@dataclass(frozen=True)
class ModelSource:
    """A model's config and headers; `folder` is None where it is not on this machine."""

    name: str
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    folder: Path | None

    @property
    def is_packed(self) -> bool:
        """Weights are quantized."""
        return any(name.endswith(".scales") for name in self.tensors)

    def shape(self, *, dequantize: bool, float_bytes: int | None) -> ModelShape:
        """Its sizes as they are once loaded. Raises: ModelUnknown."""
        try:
            return make_shape(
                self.name, self.config, self.tensors, dequantize=dequantize, float_bytes=float_bytes
            )
        except ModelError as error:
            raise ModelUnknown(str(error)) from error


def read_source(settings: Settings) -> ModelSource:
    """Read config and headers of MODEL_REPO's model, from here or from the Hub.

    Raises:
        ModelUnknown: with the reason and what helps.
    """
    try:
        folder = settings.model_dir
        is_here = not missing_files(folder)
    except ModelNotReady:
        return read_hub_source(settings.model_repo)
    if not is_here and not is_folder_name(settings.model_repo, settings.root):
        raise ModelUnknown(f"{settings.model_repo} is not made yet: ./launch.sh start makes it")
    try:
        return ModelSource(settings.model_name, read_config(folder), read_tensors(folder), folder)
    except ModelError as error:
        raise ModelUnknown(str(error)) from error


def read_hub_source(repo: str) -> ModelSource:
    """Read config and headers from the Hub.

    Raises:
        ModelUnknown: the Hub cannot be reached, has no such model, or wants its terms accepted.
    """
    from huggingface_hub import HfApi, get_safetensors_metadata, hf_hub_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HTTPError,
        LocalEntryNotFoundError,
        NotASafetensorsRepoError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        SafetensorsParsingError,
    )
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    try:
        # Asked first, as it fails at once where the others try for half a minute (huggingface_hub 2.4).
        revision = HfApi().model_info(repo, timeout=HUB_LIMIT_S).sha
        config = json.loads(Path(hf_hub_download(repo, "config.json", revision=revision)).read_text("utf-8"))
        metadata = get_safetensors_metadata(repo, revision=revision, timeout=HUB_LIMIT_S)
    except GatedRepoError as error:
        raise ModelUnknown(f"{repo} is gated: accept its terms on the Hub, then: hf auth login") from error
    except RepositoryNotFoundError as error:
        raise ModelUnknown(f"the Hub has no {repo} that may be read: check MODEL_REPO") from error
    except (NotASafetensorsRepoError, SafetensorsParsingError, ValueError) as error:
        raise ModelUnknown(f"{repo} cannot be planned for: {_first_line(error)}") from error
    except (HTTPError, HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise ModelUnknown(
            f"{repo} is not on this machine, and the Hub cannot be asked for its sizes: "
            f"{_first_line(error)}. Try again with a network, or name a model folder in MODEL_REPO"
        ) from error
    missing = [key for key in NEEDED_KEYS if key not in config]
    if missing:
        raise ModelUnknown(f"config.json of {repo} has no {missing[0]}")
    tensors = {
        name: TensorInfo(file, info.dtype, tuple(info.shape), info.data_offsets[1] - info.data_offsets[0])
        for file, entry in metadata.files_metadata.items()
        for name, info in entry.tensors.items()
    }
    return ModelSource(repo.rpartition("/")[2], config, tensors, None)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")
