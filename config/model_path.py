"""Finds the folder of the model that MODEL_REPO names, without loading or downloading it.

MODEL_REPO is a Hugging Face Hub name, a folder, `builtin:` with the name of a model that is made on this
machine, `simulated:` with the times of its stages (config/simulated.py), or `scripted:` with a file of
answers (config/scripted.py). Knows the models' folders and whether their files are complete; knows nothing of
their contents, and never imports MLX.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

from config.errors import ModelNotReady
from config.scripted import SCRIPTED_PREFIX, read_script, script_path
from config.simulated import SIMULATED_PREFIX, SimulatedModel

BUILTIN_PREFIX = "builtin:"
BUILTIN_MODELS = ("smollm2-135m",)
# The files that a rank or the front door reads; never *.py: a model's code is never run.
SMALL_PATTERNS = ("*.json", "*.jsonl", "*.jinja", "*.txt", "*.model", "*.tiktoken")
WEIGHTS_PATTERN = "model*.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
_HUB_NAME = re.compile(
    r"(?!.*(--|\.\.))[A-Za-z0-9_][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9_][A-Za-z0-9._-]{0,95})?(?<![.-])"
)


def check_model_repo(model_repo: str, root: Path) -> str:
    """Return MODEL_REPO unchanged where it is well formed. Raises ValueError with the reason."""
    if model_repo.startswith(BUILTIN_PREFIX):
        if model_repo.removeprefix(BUILTIN_PREFIX) not in BUILTIN_MODELS:
            raise ValueError(f"the built-in models are {', '.join(BUILTIN_MODELS)}")
    elif model_repo.startswith(SIMULATED_PREFIX):
        SimulatedModel.from_name(model_repo)
    elif model_repo.startswith(SCRIPTED_PREFIX):
        read_script(script_path(model_repo, root))
    elif not is_folder_name(model_repo, root) and _HUB_NAME.fullmatch(model_repo) is None:
        raise ValueError("it is neither a folder nor a Hub name")
    return model_repo


def is_folder_name(model_repo: str, root: Path) -> bool:
    """Whether the name is a folder's and not a Hub name: it looks like a path, or such a folder exists."""
    written_as_path = model_repo in (".", "..", "~") or model_repo.startswith(("/", "./", "../", "~/"))
    return written_as_path or (model_repo != "" and _is_folder(root / model_repo))


def is_hub_name(model_repo: str, root: Path) -> bool:
    """Whether the model comes from the Hub."""
    is_made_here = model_repo.startswith((BUILTIN_PREFIX, SIMULATED_PREFIX, SCRIPTED_PREFIX))
    return not is_made_here and not is_folder_name(model_repo, root)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        # The name is too long for the file system, or a parent folder is unreadable.
        return False


def locate_model(model_repo: str, *, root: Path, state_dir: Path, cache_dir: Path | None) -> Path:
    """Return the model's folder.

    The folder of a built-in model, and a folder in MODEL_REPO, need not exist (see `is_complete`).
    Raises: ModelNotReady where a Hub model is not downloaded completely.
    """
    if model_repo.startswith(BUILTIN_PREFIX):
        return state_dir / "models" / model_repo.removeprefix(BUILTIN_PREFIX)
    if model_repo.startswith(SIMULATED_PREFIX):
        return state_dir / "models" / f"simulated-{_digest(model_repo)}"
    if model_repo.startswith(SCRIPTED_PREFIX):
        return state_dir / "models" / f"scripted-{_digest(str(script_path(model_repo, root)))}"
    if is_folder_name(model_repo, root):
        return (root / Path(model_repo).expanduser()).resolve()
    return _hub_snapshot(model_repo, cache_dir)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def short_name(model_repo: str) -> str:
    """Return the public name: what follows the last slash or `builtin:`, or `scripted-` and a file's stem."""
    if model_repo.startswith(SCRIPTED_PREFIX):
        return f"scripted-{Path(model_repo.removeprefix(SCRIPTED_PREFIX)).stem}"
    return Path(model_repo.removeprefix(BUILTIN_PREFIX)).expanduser().resolve().name


def missing_files(folder: Path) -> tuple[str, ...]:
    """Return the missing files of a model folder: `config.json`, and the weights that its index lists."""
    wanted = ["config.json"]
    index = folder / WEIGHTS_INDEX
    if index.is_file():
        wanted += sorted(set(_weight_map(index).values()))
    elif not any(folder.glob("*.safetensors")):
        wanted.append("model.safetensors")
    return tuple(name for name in wanted if not (folder / name).is_file())


def is_complete(folder: Path) -> bool:
    """Whether a model folder has all its files."""
    return not missing_files(folder)


def _weight_map(index: Path) -> dict[str, str]:
    try:
        found = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return {str(tensor): str(name) for tensor, name in found.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelNotReady(
            f"{index} is not an index of weights: {error}; delete it, and run `python -m distributed.prepare`"
        ) from error


def _hub_snapshot(model_repo: str, cache_dir: Path | None) -> Path:
    # Imported here: it is slow, and a folder or a built-in model does not need it.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        # A snapshot is complete without files that are never read, such as a README.
        folder = Path(
            snapshot_download(
                model_repo,
                cache_dir=cache_dir,
                local_files_only=True,
                allow_patterns=[*SMALL_PATTERNS, WEIGHTS_PATTERN],
            )
        )
    except (LocalEntryNotFoundError, HFValidationError) as error:
        raise ModelNotReady(
            f"MODEL_REPO = {model_repo} is not on this machine yet; "
            "`python -m distributed.prepare` downloads it"
        ) from error
    missing = missing_files(folder)
    if missing:
        raise ModelNotReady(
            f"MODEL_REPO = {model_repo} is not completely downloaded: {missing[0]} is missing "
            f"({len(missing)} files in total); `python -m distributed.prepare` downloads the rest"
        )
    return folder
