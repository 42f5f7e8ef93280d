"""Reads a model's config and the headers of its weights, before it is loaded or even downloaded.

From its folder, or from the Hub if it is not on this machine: config.json, the index, and the headers of the
safetensors files. Fetches no weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.errors import ClusterError
from config import ModelNotReady, Settings
from config.model_path import is_folder_name, missing_files
from distributed.planning.checkpoint import TensorInfo
from distributed.planning.hub_model import HubSilent, read_hub_model
from distributed.planning.model_errors import ModelError
from distributed.planning.model_shape import ModelShape, make_shape, read_model_files


class ModelUnknown(ClusterError):
    """The model's sizes are unknown: it is not on this machine, and the Hub does not answer."""


class HubOutOfReach(ModelUnknown):
    """The Hub cannot be reached, so that a start could not fetch the model either."""


class ModelRefused(ClusterError):
    """The model cannot be served, here or once it is downloaded; the message says why."""


@dataclass(frozen=True)
class ModelSource:
    """A model's config and headers; `folder` is None if the model is not on this machine."""

    name: str
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    folder: Path | None

    @property
    def is_packed(self) -> bool:
        """Weights are quantized."""
        return any(name.endswith(".scales") for name in self.tensors)

    def shape(self, *, dequantize: bool, float_bytes: int | None) -> ModelShape:
        """Its sizes once loaded. Raises: ModelRefused."""
        try:
            return make_shape(
                self.name, self.config, self.tensors, dequantize=dequantize, float_bytes=float_bytes
            )
        except ModelError as error:
            raise ModelRefused(str(error)) from error


def read_source(settings: Settings) -> ModelSource:
    """Read config and headers of the model MODEL_REPO, from this machine or from the Hub.

    Raises:
        ModelUnknown: the model must be made first, or the Hub does not answer.
        ModelRefused: it cannot be served, with the reason.
    """
    repo = settings.model_repo
    try:
        folder = settings.model_dir
    except ModelNotReady:
        folder = None
    if folder and not is_folder_name(repo, settings.root) and missing_files(folder):
        raise ModelUnknown(f"{repo} does not exist yet: ./launch.sh start makes it")
    try:
        if folder:
            return ModelSource(settings.model_name, *read_model_files(folder), folder)
        found = read_hub_model(repo, settings.model_cache_dir)
    except HubSilent as error:
        raise HubOutOfReach(
            f"{repo} is not on this machine, and the Hub cannot be asked for its sizes: {error.reason}. "
            "Try again with a network, or set MODEL_REPO to a model folder"
        ) from error
    except ModelError as error:
        raise ModelRefused(str(error)) from error
    return ModelSource(repo.rpartition("/")[2], found.config, found.tensors, None)
