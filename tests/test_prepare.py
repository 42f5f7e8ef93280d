"""Putting MODEL_REPO's model into place, as a command."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from distributed.models import prepare
from tests.checkpoints import make_checkpoint

ROOT = Path(__file__).resolve().parent.parent


def run(model_repo: str, state_dir: Path) -> subprocess.CompletedProcess[str]:
    """Run the command with these settings, off the network."""
    environment = os.environ | {"MODEL_REPO": model_repo, "STATE_DIR": str(state_dir), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "distributed.models.prepare"]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_a_sound_folder_is_printed(tmp_path: Path) -> None:
    """A folder with a served model is taken as it is."""
    folder = make_checkpoint(tmp_path / "model", "qwen3")
    done = run(str(folder), tmp_path)
    assert (done.returncode, done.stdout.strip()) == (0, str(folder))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: (folder / "model-00002-of-00002.safetensors").unlink(), "model-00002-of-00002"),
        (lambda folder: (folder / "config.json").unlink(), "config.json"),
        (lambda folder: [path.unlink() for path in folder.glob("tokenizer*")], "no tokenizer"),
        (lambda folder: _set_type(folder, "gemma3"), "gemma3"),
    ],
)
def test_an_unsound_folder_ends_with_a_sentence(tmp_path: Path, damage: object, reason: str) -> None:
    """What is missing or not served is named; nothing is printed on standard output."""
    folder = make_checkpoint(tmp_path / "model", "qwen3")
    assert callable(damage)
    damage(folder)
    done = run(str(folder), tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert reason in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_that_is_not_there_ends_with_a_sentence(tmp_path: Path) -> None:
    """A path is never taken for a Hub name."""
    done = run(str(tmp_path / "absent"), tmp_path)
    assert done.returncode == 2
    assert "there is no folder" in done.stderr


def test_a_hub_name_that_cannot_be_fetched_ends_with_its_name(tmp_path: Path) -> None:
    """Off the network the command says which repository it wanted."""
    done = run("someone/some-model", tmp_path)
    assert done.returncode == 2
    assert "someone/some-model cannot be downloaded" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_download_larger_than_the_disk_is_refused_with_the_numbers(tmp_path: Path) -> None:
    """The sentence names the repository, what it needs and what is free."""
    with pytest.raises(prepare.CannotDownload, match=r"a/b needs 1000000\.0 GB more.*GB free"):
        prepare.check_disk("a/b", 10**15, tmp_path / "not" / "there")


def _set_type(folder: Path, model_type: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": model_type}))
