"""Put the model that MODEL_REPO names into place: `python -m distributed.prepare`.

A built-in model is made, a Hub name is downloaded (weights and tokenizer only, never code), a folder is
checked. Prints the folder on standard output and progress on standard error; does nothing, and quickly, where
all is there. With --into only some files of a Hub model are fetched, for a host with part of the layers. Ends
with code 2 and a sentence where it cannot be done. Loads no weights.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from config import ConfigError, ModelNotReady, Settings, load_settings
from config.disk_trouble import describe_refused, is_of_system
from config.model_path import BUILTIN_PREFIX, is_folder_name
from config.scripted import SCRIPTED_PREFIX, script_path
from config.simulated import SIMULATED_PREFIX
from distributed.models.hub import Wanted, check_disk, fetch, name_files, say
from distributed.planning.hub_model import read_hub_model
from distributed.planning.model_errors import ModelError
from distributed.planning.model_shape import read_model_files

BUILTIN_DISK_BYTES = 550_000_000


def prepare(settings: Settings) -> Path:
    """Put the model into place and return its folder.

    Raises:
        ModelError: with a sentence that says what to do.
    """
    repo = settings.model_repo
    if repo.startswith(BUILTIN_PREFIX):
        _make_builtin(repo.removeprefix(BUILTIN_PREFIX), settings.model_dir)
        return settings.model_dir
    if repo.startswith(SIMULATED_PREFIX):
        from distributed.models.simulated import make_simulated

        make_simulated(repo, settings.model_dir)
        return settings.model_dir
    if repo.startswith(SCRIPTED_PREFIX):
        from distributed.models.scripted import make_scripted

        make_scripted(script_path(repo, settings.root), settings.model_dir)
        return settings.model_dir
    if not is_folder_name(repo, settings.root):
        fetch_checked(repo, settings)
    elif not settings.model_dir.is_dir():
        raise ModelError(f"MODEL_REPO = {repo}: there is no folder {settings.model_dir}")
    return checked(settings.model_dir)


def fetch_checked(repo: str, settings: Settings) -> None:
    """Fetch what is not here of a model of the Hub, once its config and headers say that it can be served."""
    if _is_here(settings):
        return
    from distributed.models import check_model

    found = read_hub_model(repo, settings.model_cache_dir)
    check_model(repo, found.config, found.tensors)
    fetch(Wanted(repo, cache_dir=settings.model_cache_dir))


def _is_here(settings: Settings) -> bool:
    """Whether the cache holds the whole model of the Hub."""
    try:
        return settings.model_dir.is_dir()
    except ModelNotReady:
        return False


def checked(folder: Path) -> Path:
    """Return the folder if its weights are whole and its model is served; reads headers only."""
    from distributed.models import check_model

    config, tensors = read_model_files(folder)
    check_model(str(folder), config, tensors)
    return folder


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
    from distributed.backends.choose import choose_backend
    from distributed.models.builtin import is_made, make_builtin

    is_packed = choose_backend().float_bytes is None
    if not is_made(folder, name, is_packed=is_packed):
        check_disk(f"builtin:{name}", BUILTIN_DISK_BYTES, folder.parent, "STATE_DIR")
        say(f"making builtin:{name} in {folder}")
        make_builtin(name, folder, is_packed=is_packed, on_progress=show_progress)


def fetch_into(options: argparse.Namespace) -> Path:
    """Fetch the files of a plan into a folder; tells on standard output how far it is.

    Raises:
        CannotDownload: with the reason.
    """
    wanted = Wanted(options.repo, options.revision, name_files(options.names), folder=options.into)
    fetch(wanted, lambda done, total: print(json.dumps({"done_bytes": done}), flush=True))
    return wanted.place


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepare the model of the settings, or fetch some files of it; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m distributed.prepare")
    parser.add_argument("--into", type=Path, metavar="FOLDER", help="fetch only NAME… of --repo, into this")
    parser.add_argument("--repo", help="Hub name; with --into")
    parser.add_argument("--revision", help="of the repository; with --into")
    parser.add_argument("names", nargs="*", metavar="NAME", help="files to fetch; with --into")
    options = parser.parse_args(arguments)
    if bool(options.into) != bool(options.repo and options.revision and options.names):
        parser.error("--into, --repo, --revision and NAME… belong together")
    try:
        print(fetch_into(options) if options.into else prepare(load_settings()))
    except (ConfigError, ModelError) as error:
        say(str(error))
        return 2
    except OSError as error:
        if not is_of_system(error):
            raise
        say(f"the model cannot be written: {describe_refused(error)}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
