"""Checks a model on the Hugging Face Hub before its weights are fetched, from file names, config and headers.

Reads, in this order, the list of files, config.json, the index and the headers of the safetensors files, so
that it refuses a model as early as it can. Knows nothing of MLX or of where a download is stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

from config.model_path import WEIGHTS_INDEX, WEIGHTS_PATTERN
from distributed.planning.checkpoint import TensorInfo, parse_config, parse_index
from distributed.planning.families.model_config import tensor_name
from distributed.planning.model_errors import BadCheckpoint, ModelError
from distributed.planning.model_listing import check_config_listed, check_files_listed
from distributed.planning.stage_files import check_tensors

HUB_LIMIT_S = 20.0
NUM_CONNECTIONS = 8
_MAY_NOT_READ = (401, 403)


class CannotDownload(ModelError):
    """The Hub refused, cannot be reached, or the disk is too small."""


class HubSilent(CannotDownload):
    """The Hub does not answer, so it is not known whether the model can be served; `reason` says why."""

    def __init__(self, repo: str, reason: str) -> None:
        super().__init__(f"{repo} cannot be downloaded: {reason}. Run this again to continue")
        self.reason = reason


@dataclass(frozen=True)
class HubModel:
    """A model of the Hub: its config as `read_config` returns it, and its tensors by name."""

    config: dict[str, Any]
    tensors: dict[str, TensorInfo]


def read_hub_model(repo: str, cache_dir: Path | None) -> HubModel:
    """Read and check config and headers of a repository; shapes are not checked.

    Args:
        cache_dir: keeps config and index for the download; None: the Hub's own cache.

    Raises:
        HubSilent: the Hub does not answer.
        CannotDownload: there is no such repository, or its terms were not accepted.
        ModelError: the model cannot be served.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        SafetensorsParsingError,
    )

    try:
        # First, since it fails at once offline; the other calls retry for long (huggingface_hub 2.4).
        info = HfApi().model_info(repo, timeout=HUB_LIMIT_S)
        names = {entry.rfilename for entry in info.siblings or []}
        check_config_listed(repo, names)
        download = partial(_download, repo, info.sha, cache_dir)
        config = parse_config(download("config.json"), f"config.json of {repo}")
        check_files_listed(repo, names)
        index = {}
        if WEIGHTS_INDEX in names:
            index = parse_index(download(WEIGHTS_INDEX), f"{WEIGHTS_INDEX} of {repo}")
        tensors = _read_tensors(repo, info.sha, names, index)
    except SafetensorsParsingError as error:
        raise BadCheckpoint(f"{repo}: {first_line(error)}") from error
    except (HTTPError, HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise describe_hub_error(repo, error) from error
    check_tensors(repo, config, tensors)
    return HubModel(config, tensors)


def describe_hub_error(repo: str, error: Exception) -> CannotDownload:
    """Return the error with a sentence that says what failed and how to fix it."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, HfHubHTTPError):
        error = error.__cause__  # its own message blames the network
    if isinstance(error, GatedRepoError):
        return CannotDownload(f"{repo} is gated: accept its terms on the Hub, then run `hf auth login`")
    if isinstance(error, RepositoryNotFoundError):
        return CannotDownload(
            f"the Hub has no {repo} that you may read: check the spelling of MODEL_REPO, or run "
            "`hf auth login`"
        )
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
    if status in _MAY_NOT_READ:
        return CannotDownload(f"the Hub does not allow you to read {repo} ({status}): run `hf auth login`")
    return HubSilent(repo, first_line(error))


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, without a full stop."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")


def _download(repo: str, revision: str | None, cache_dir: Path | None, name: str) -> bytes:
    """Fetch a small file into the cache without a progress bar; return its bytes."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import silent_tqdm

    path = hf_hub_download(repo, name, revision=revision, cache_dir=cache_dir, tqdm_class=silent_tqdm)
    return Path(path).read_bytes()


def _read_tensors(
    repo: str, revision: str | None, names: set[str], index: dict[str, str]
) -> dict[str, TensorInfo]:
    """Read the tensors of all weight files from their headers."""
    files = sorted(set(index.values())) or sorted(name for name in names if fnmatch(name, WEIGHTS_PATTERN))
    if missing := [name for name in files if name not in names]:
        raise BadCheckpoint(f"{repo} has no {missing[0]}, which its {WEIGHTS_INDEX} names")
    tensors = _read_headers(repo, revision, files)
    if lost := sorted(index.keys() - tensors.keys()):
        raise BadCheckpoint(f"{repo}: {len(lost)} tensors of {WEIGHTS_INDEX} are in no file, first {lost[0]}")
    return tensors


def _read_headers(repo: str, revision: str | None, files: Sequence[str]) -> dict[str, TensorInfo]:
    from huggingface_hub import HfApi

    def read(file: str) -> dict[str, TensorInfo]:
        header = HfApi().parse_safetensors_file_metadata(repo, file, revision=revision, timeout=HUB_LIMIT_S)
        return {
            tensor_name(name): TensorInfo(
                file, str(info.dtype), tuple(info.shape), info.data_offsets[1] - info.data_offsets[0]
            )
            for name, info in header.tensors.items()
        }

    with ThreadPoolExecutor(NUM_CONNECTIONS) as pool:
        return {name: info for found in pool.map(read, files) for name, info in found.items()}
