"""Put the model that MODEL_REPO names into place: `python -m distributed.models.prepare`.

A built-in model is made, a Hub name is downloaded (weights and tokenizer only, never code), a folder is
checked. Prints the folder on standard output and progress on standard error; does nothing, and quickly, where
all is there. Ends with code 2 and a sentence where it cannot be done. Loads no weights.
"""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

from config import ConfigError, ModelNotReady, Settings, load_settings
from config.model_path import BUILTIN_PREFIX, is_folder_name
from distributed.checkpoint import ModelError, read_config, read_tensors

# What a rank or the front door reads; never *.py: code from a model is never run.
HUB_PATTERNS = ("*.json", "*.jsonl", "*.jinja", "*.txt", "*.model", "*.tiktoken", "model*.safetensors")
SPARE_DISK_BYTES = 1_000_000_000
BUILTIN_DISK_BYTES = 550_000_000


class CannotDownload(ModelError):
    """The Hub refused, cannot be reached, or the disk is too small."""


def prepare(settings: Settings) -> Path:
    """Put the model into place and return its folder.

    Raises:
        ModelError: with a sentence that says what to do.
    """
    repo = settings.model_repo
    if repo.startswith(BUILTIN_PREFIX):
        _make_builtin(repo.removeprefix(BUILTIN_PREFIX), settings.model_dir)
        return settings.model_dir
    if not is_folder_name(repo, settings.root):
        try:
            return settings.model_dir  # complete: the lookup checks it
        except ModelNotReady:
            download(repo, settings.model_cache_dir)
    elif not settings.model_dir.is_dir():
        raise ModelError(f"MODEL_REPO = {repo}: there is no folder {settings.model_dir}")
    return checked(settings.model_dir)


def checked(folder: Path) -> Path:
    """Return the folder if its weights are whole and its model type is served; reads headers only."""
    read_tensors(folder)
    from distributed.models import provider_for

    config = read_config(folder)
    provider_for(config).check(config)
    if not (folder / "tokenizer.json").is_file() and not (folder / "tokenizer_config.json").is_file():
        raise ModelError(f"{folder} has no tokenizer")
    return folder


def download(repo: str, cache_dir: Path | None) -> None:
    """Download the model from the Hugging Face Hub, going on where an earlier download ended.

    Raises:
        CannotDownload: naming the repository and the reason.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    place = cache_dir or Path(constants.HF_HUB_CACHE)
    try:
        files = snapshot_download(repo, cache_dir=place, allow_patterns=list(HUB_PATTERNS), dry_run=True)
        missing = [file for file in files if file.will_download]
        num_bytes = sum(file.file_size or 0 for file in missing)
        check_disk(repo, num_bytes, place)
        say(f"downloading {repo}: {len(missing)} files, {num_bytes / 1e9:.1f} GB, into {place}")
        started = time.monotonic()
        snapshot_download(repo, cache_dir=place, allow_patterns=list(HUB_PATTERNS))
        say(f"downloaded {repo} in {time.monotonic() - started:.0f} s")
    except GatedRepoError as error:
        raise CannotDownload(
            f"{repo} is gated: accept its terms on the Hub, then run `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise CannotDownload(
            f"the Hub has no {repo} that may be read: check MODEL_REPO for typing errors"
        ) from error
    except (HTTPError, HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        raise CannotDownload(
            f"{repo} cannot be downloaded: {first_line(error)}. Run this again to go on"
        ) from error


def check_disk(repo: str, num_bytes: int, place: Path, setting: str = "MODEL_CACHE_DIR") -> None:
    """Refuse what would fill the disk; `setting` can name another one."""
    there = next(folder for folder in (place, *place.parents) if folder.is_dir())
    free = shutil.disk_usage(there).free
    if num_bytes + SPARE_DISK_BYTES > free:
        raise CannotDownload(
            f"{repo} needs {num_bytes / 1e9:.1f} GB more, but {place} has {free / 1e9:.1f} GB free (and "
            f"{SPARE_DISK_BYTES / 1e9:.0f} GB should stay free); {setting} can name another disk"
        )


def first_line(error: BaseException) -> str:
    """Return what an exception says, in one line without a full stop."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")


def say(message: str) -> None:
    """Print one line of progress."""
    print(message, file=sys.stderr, flush=True)


def show_progress(fraction: float, what: str) -> None:
    """Show a bar on a terminal, a line elsewhere."""
    if not sys.stderr.isatty():
        say(f"{fraction:4.0%} {what}")
        return
    filled = int(fraction * 30)
    print(f"\r[{'#' * filled:<30}] {fraction:4.0%} {what:<24}", end="", file=sys.stderr, flush=True)
    if fraction >= 1.0:
        say("")


def _make_builtin(name: str, folder: Path) -> None:
    from distributed.models.builtin import is_made, make_builtin, wants_packed

    if not is_made(folder, name, is_packed=wants_packed()):
        check_disk(f"builtin:{name}", BUILTIN_DISK_BYTES, folder.parent, "STATE_DIR")
        say(f"making builtin:{name} in {folder}")
        make_builtin(name, folder, is_packed=wants_packed(), on_progress=show_progress)


def main() -> int:
    """Prepare the model of the settings; return the exit code."""
    try:
        print(prepare(load_settings()))
    except (ConfigError, ModelError) as error:
        say(str(error))
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
