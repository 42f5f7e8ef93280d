"""Fetches files of a model from the Hugging Face Hub, going on where an earlier download ended.

Everything a rank or the front door reads, into the cache; or only the named files, of one revision, into a
folder. Disk space is looked at first. Imports no MLX; never fetches code.
"""

from __future__ import annotations

import errno
import shutil
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config.model_path import SMALL_PATTERNS, WEIGHTS_PATTERN
from distributed.planning.hub_model import CannotDownload, describe_hub_error

SPARE_DISK_BYTES = 1_000_000_000
TELL_SHARE = 0.1


@dataclass(frozen=True)
class Wanted:
    """What to fetch: `names` of one revision into `folder`, or all that is ever read into the cache."""

    repo: str
    revision: str | None = None
    names: tuple[str, ...] = (*SMALL_PATTERNS, WEIGHTS_PATTERN)
    cache_dir: Path | None = None
    folder: Path | None = None

    @property
    def place(self) -> Path:
        """Where the files come to lie."""
        from huggingface_hub import constants

        return self.folder or self.cache_dir or Path(constants.HF_HUB_CACHE)

    def arguments(self) -> dict[str, Any]:
        """What snapshot_download is called with."""
        where = {"local_dir": self.folder} if self.folder else {"cache_dir": self.place}
        return {
            "repo_id": self.repo,
            "revision": self.revision,
            "allow_patterns": list(self.names),
            **where,
        }


def fetch(wanted: Wanted, on_bytes: Callable[[int, int], None] | None = None) -> None:
    """Fetch what is not there yet.

    Args:
        on_bytes: called with bytes done and in all; without it bars are shown on a terminal, lines elsewhere.

    Raises:
        CannotDownload: naming the repository and the reason.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled
    from huggingface_hub.utils import disable_progress_bars

    if on_bytes or not sys.stderr.isatty():
        disable_progress_bars()
    try:
        files = snapshot_download(**wanted.arguments(), dry_run=True)
        missing = [file for file in files if file.will_download]
        num_bytes = sum(file.file_size or 0 for file in missing)
        setting = "WORKER_DIR" if wanted.folder else "MODEL_CACHE_DIR"
        check_disk(wanted.repo, num_bytes, wanted.place, setting)
        say(f"downloading {wanted.repo}: {len(missing)} files, {num_bytes / 1e9:.1f} GB, into {wanted.place}")
        started = time.monotonic()
        snapshot_download(**wanted.arguments(), **_progress(num_bytes, on_bytes))
        say(f"downloaded {wanted.repo} in {time.monotonic() - started:.0f} s")
    except (HTTPError, HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        raise describe_error(wanted, error) from error


def describe_error(wanted: Wanted, error: Exception) -> CannotDownload:
    """Return the error with a sentence for what went wrong, and what helps."""
    from huggingface_hub.errors import DryRunError, RevisionNotFoundError

    if isinstance(error, DryRunError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    if isinstance(error, RevisionNotFoundError):
        return CannotDownload(
            f"the Hub has no revision {wanted.revision} of {wanted.repo} any more: set MODEL_SYNC=copy"
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return CannotDownload(f"the disk of {wanted.place} is full: make room, then run this again to go on")
    return describe_hub_error(wanted.repo, error)


def _progress(num_bytes: int, on_bytes: Callable[[int, int], None] | None) -> dict[str, Any]:
    """What makes snapshot_download tell how far it is; nothing where it shows bars of its own."""
    if on_bytes is None and sys.stderr.isatty():
        return {}
    from huggingface_hub.utils import tqdm

    counter = ByteCounter(num_bytes, on_bytes or _print_share)

    class CountedBar(tqdm):
        """Shows nothing; the bar of bytes that come from the network counts them (huggingface_hub 2.4)."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})
            self._counts = str(kwargs.get("name", "")).endswith(".transfer")

        def update(self, n: float | None = 1) -> bool | None:
            if self._counts:
                counter.add(int(n or 0))
            return None

    return {"tqdm_class": CountedBar}


class ByteCounter:
    """Adds up what several threads fetch; tells of each tenth."""

    def __init__(self, total: int, tell: Callable[[int, int], None]) -> None:
        self._total, self._tell = total, tell
        self._done = 0
        self._told_share = 0.0
        self._lock = threading.Lock()

    def add(self, num_bytes: int) -> None:
        """Count some more."""
        with self._lock:
            self._done = min(self._done + num_bytes, self._total)
            share = self._done / self._total if self._total else 1.0
            if share - self._told_share >= TELL_SHARE or share == 1.0 > self._told_share:
                self._told_share = share
                self._tell(self._done, self._total)


def _print_share(done: int, total: int) -> None:
    say(f"{done / total:4.0%} of {total / 1e9:.1f} GB")


def check_disk(repo: str, num_bytes: int, place: Path, setting: str = "MODEL_CACHE_DIR") -> None:
    """Refuse what would fill the disk; `setting` can name another one."""
    there = next(folder for folder in (place, *place.parents) if folder.is_dir())
    free = shutil.disk_usage(there).free
    if num_bytes + SPARE_DISK_BYTES > free:
        raise CannotDownload(
            f"{repo} needs {num_bytes / 1e9:.1f} GB more, but {place} has {free / 1e9:.1f} GB free (and "
            f"{SPARE_DISK_BYTES / 1e9:.0f} GB should stay free); {setting} can name another disk"
        )


def say(message: str) -> None:
    """Print one line of progress."""
    print(message, file=sys.stderr, flush=True)


def name_files(words: Sequence[str]) -> tuple[str, ...]:
    """Check names of files that are to be fetched into a folder: no paths, no patterns.

    Raises:
        CannotDownload: naming the first that is one.
    """
    for name in words:
        if Path(name).name != name or any(letter in name for letter in "*?["):
            raise CannotDownload(f"{name!r} is not the name of a model's file")
    return tuple(words)
