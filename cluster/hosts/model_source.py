"""Reads a model's config and the headers of its weights, before it is loaded or even downloaded.

From its folder, or from the Hub if it is not on this machine: config.json, the index, and the headers of the
safetensors files. Fetches no weights. For a plan alone the sizes of some published models ship with the code
(distributed/planning/published.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.errors import ClusterError
from config import ModelNotReady, Settings
from config.model_path import is_folder_name, is_hub_name, missing_files
from distributed.planning.checkpoint import TensorInfo
from distributed.planning.hub_model import HubSilent, read_hub_model
from distributed.planning.model_errors import ModelError
from distributed.planning.model_shape import ModelShape, make_shape, read_model_files, settle_windows
from distributed.planning.published import find_published, list_published, read_published


class ModelUnknown(ClusterError):
    """The model's sizes are unknown: it is not on this machine, and the Hub does not answer."""


class HubOutOfReach(ModelUnknown):
    """The Hub cannot be reached, so that a start could not fetch the model either."""


class ModelRefused(ClusterError):
    """The model cannot be served, here or once it is downloaded; the message says why."""


@dataclass(frozen=True)
class ModelSource:
    """A model's config and headers.

    Args:
        folder: None if the model is not on this machine.
        is_from_class: no file was read: the tensors are those of the model's class.
    """

    name: str
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    folder: Path | None
    is_from_class: bool = False

    @property
    def is_packed(self) -> bool:
        """Weights are quantized."""
        return any(name.endswith(".scales") for name in self.tensors)

    def shape(self, *, dequantize: bool, float_bytes: int | None, num_tokens: int) -> ModelShape:
        """Its sizes once loaded, with contexts of up to so many tokens. Raises: ModelRefused."""
        try:
            config = settle_windows(self.name, self.config, num_tokens)
            return make_shape(self.name, config, self.tensors, dequantize=dequantize, float_bytes=float_bytes)
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


def read_source_to_plan(settings: Settings) -> ModelSource:
    """Read config and headers; if the Hub is out of reach, the config and sizes that ship with the code.

    With a published model's name without its owner, nobody is asked.

    Raises:
        HubOutOfReach: no sizes of it ship with the code; the message lists the models that have them.
        ModelUnknown, ModelRefused: as `read_source` does.
    """
    repo = settings.model_repo
    name = find_published(repo) if is_hub_name(repo, settings.root) else None
    if name is None or "/" in repo:
        try:
            return read_source(settings)
        except HubOutOfReach as error:
            if name is None:
                known = ", ".join(list_published())
                raise HubOutOfReach(f"{error}. Planned without either: {known}") from error
    try:
        return ModelSource(name, *read_published(name), None, is_from_class=True)
    except ModelError as error:
        raise ModelRefused(str(error)) from error
