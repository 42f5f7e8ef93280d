"""Putting MODEL_REPO's model into place, as a command."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from distributed.models import hub
from tests.checkpoints import make_checkpoint
from tests.fake_hub import REVISION, FakeHub

ROOT = Path(__file__).resolve().parent.parent


def run(model_repo: str, state_dir: Path, **extra: str) -> subprocess.CompletedProcess[str]:
    """Run the command with these settings, off the network."""
    settings = {"MODEL_REPO": model_repo, "STATE_DIR": str(state_dir)}
    environment = os.environ | {"HF_HUB_OFFLINE": "1"} | extra | settings
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
    with pytest.raises(hub.CannotDownload, match=r"a/b needs 1000000\.0 GB more.*GB free"):
        hub.check_disk("a/b", 10**15, tmp_path / "not" / "there")


def _set_type(folder: Path, model_type: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": model_type}))


def run_on_hub(served: FakeHub, tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command against a Hub of our own, with huggingface_hub's real code."""
    extra = served.environment(tmp_path / "cache") | {"STATE_DIR": str(tmp_path / "state")}
    command = [sys.executable, "-m", "distributed.models.prepare", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | extra, capture_output=True, text=True, check=False
    )


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """What the Hub has: a model in two files, and code that must stay there."""
    folder = make_checkpoint(tmp_path / "model", "qwen3")
    (folder / "modeling.py").write_text("raise SystemExit\n")
    return folder


@pytest.mark.slow
def test_a_hub_model_is_downloaded_once_and_without_code(model: Path, tmp_path: Path) -> None:
    """The folder is printed; the second time nothing is asked for. Progress comes in lines."""
    with FakeHub(model) as served:
        done = run_on_hub(served, tmp_path)
        assert done.returncode == 0, done.stderr
        assert "100% of" in done.stderr
        folder = Path(done.stdout.strip())
        wanted = {path.name for path in model.iterdir()} - {"modeling.py"}
        assert {path.name for path in folder.iterdir()} == wanted
        served.sent_bytes.clear()
        assert run_on_hub(served, tmp_path).stdout == done.stdout
        assert not served.sent_bytes


@pytest.mark.slow
def test_only_the_named_files_of_a_revision_are_fetched(model: Path, tmp_path: Path) -> None:
    """A host with part of the layers gets its files and no others, and tells how far it is."""
    names = ("config.json", "model-00002-of-00002.safetensors")
    into = tmp_path / "part"
    with FakeHub(model) as served:
        arguments = ["--repo", served.repo, "--revision", REVISION, "--into", str(into), *names]
        done = run_on_hub(served, tmp_path, *arguments)
        assert done.returncode == 0, done.stderr
        assert {path.name for path in into.iterdir() if path.is_file()} == set(names)
        assert set(served.sent_bytes) >= set(names)
        assert "model-00001-of-00002.safetensors" not in served.sent_bytes
    size = sum((model / name).stat().st_size for name in names)
    assert json.loads(done.stdout.splitlines()[-2]) == {"done_bytes": size}
    assert (into / names[1]).read_bytes() == (model / names[1]).read_bytes()


@pytest.mark.slow
def test_a_broken_download_goes_on_where_it_ended(model: Path, tmp_path: Path) -> None:
    """A connection that breaks off costs at most huggingface_hub's last 10 MB, not the file's beginning."""
    large = model / "model-large.safetensors"
    large.write_bytes(bytes(range(256)) * (96 << 10))
    size = large.stat().st_size
    into = tmp_path / "part"
    with FakeHub(model) as served:
        served.break_after_bytes = size - (1 << 20)
        done = run_on_hub(
            served, tmp_path, "--repo", served.repo, "--revision", REVISION, "--into", str(into), large.name
        )
        assert done.returncode == 0, done.stderr
        assert (into / large.name).read_bytes() == large.read_bytes()
        assert size <= served.sent_bytes[large.name] < size + 10_000_000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda served: setattr(served, "is_gated", True), "someone/some-model is gated"),
        (lambda served: setattr(served, "repo", "someone/else"), "the Hub has no someone/some-model"),
    ],
)
def test_what_the_hub_refuses_is_told_in_a_sentence(
    model: Path, tmp_path: Path, spoil: Callable[[FakeHub], None], reason: str
) -> None:
    """Terms that were not accepted, a name that is not there: said with what helps, no traceback."""
    with FakeHub(model) as served:
        extra = served.environment(tmp_path / "cache")
        spoil(served)
        done = run("someone/some-model", tmp_path, **extra)
    assert done.returncode == 2
    assert reason in done.stderr
    assert "Traceback" not in done.stderr


def test_a_full_disk_is_named() -> None:
    """The download stops in the middle: what to do is said, not the number of the error."""
    wanted = hub.Wanted("a/b", folder=Path("/models/b"))
    said = hub.describe_error(wanted, OSError(errno.ENOSPC, "No space left on device"))
    assert said == "the disk of /models/b is full: make room, then run this again to go on"


@pytest.mark.parametrize("name", ["../config.json", "*.json", "a/b.json"])
def test_only_plain_names_are_fetched(name: str) -> None:
    """What names a path or a pattern is refused."""
    with pytest.raises(hub.CannotDownload, match="not the name"):
        hub.name_files(["config.json", name])
