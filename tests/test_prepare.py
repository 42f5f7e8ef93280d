"""Putting MODEL_REPO's model into place, as a command."""

import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distributed.checkpoint import INDEX_NAME
from distributed.hub_model import CannotDownload
from distributed.model_errors import ModelError
from distributed.model_shape import read_model_files
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
        (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json is not JSON"),
        (lambda folder: _change(folder, num_hidden_layers="4"), "num_hidden_layers = '4'"),
        (lambda folder: _change(folder, num_hidden_layers=5), "no weights of layer 4"),
        (lambda folder: _change(folder, intermediate_size=96), "shape"),
        (lambda folder: (folder / INDEX_NAME).write_text("[]"), f"{INDEX_NAME} is not a JSON object"),
        (lambda folder: _change(folder, model_type="gemma3"), "gemma3"),
    ],
)
def test_an_unsound_folder_ends_with_a_sentence(tmp_path: Path, damage: object, reason: str) -> None:
    """What is missing or not served is named; nothing is printed on standard output."""
    folder = make_checkpoint(tmp_path / "model", "qwen3")
    assert callable(damage)
    damage(folder)
    done = run(str(folder), tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.search(reason, done.stderr), done.stderr
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
    with pytest.raises(CannotDownload, match=r"a/b needs 1000000\.0 GB more.*GB free"):
        hub.check_disk("a/b", 10**15, tmp_path / "not" / "there")


def _change(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


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
        (lambda served: setattr(served, "file_status", 403), "does not let someone/some-model be read (403)"),
        (lambda served: setattr(served, "file_status", 503), "someone/some-model cannot be downloaded"),
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


def _retype(folder: Path, dtype: str) -> None:
    """Say in every header that 32-bit tensors are of another type of that width."""
    for path in folder.glob("model*.safetensors"):
        path.write_bytes(path.read_bytes().replace(b'"F32"', b'"' + dtype.encode() + b'"'))


def _keep_only(folder: Path, *names: str, without_config: bool = False) -> None:
    """Put empty files of these names into the place of all weights."""
    for path in [*folder.glob("model*"), *([folder / "config.json"] if without_config else [])]:
        path.unlink()
    for name in names:
        (folder / name).write_bytes(b"")


def _without(folder: Path, name: str, other: str) -> None:
    (folder / name).rename(folder / other)


# What is done to a model folder, and what is said of it.
UNSERVED: dict[str, tuple[Callable[[Path], object], str]] = {
    "type": (
        lambda folder: _change(folder, model_type="gemma3"),
        r"'gemma3' is not served; served are deepseek",
    ),
    "images": (
        lambda folder: _change(folder, model_type="llava", text_config={"model_type": "llama"}),
        r"'llava' \(its text_config is of type 'llama'\) is not served",
    ),
    "key": (lambda folder: _change(folder, attention_bias=True), r"attention_bias = True is not served"),
    "wrong": (lambda folder: _change(folder, hidden_size="64"), r"hidden_size = '64' is not a whole number"),
    "fp8": (lambda folder: _change(folder, quantization_config={"quant_method": "fp8"}), r"packed by fp8"),
    "gptq": (lambda folder: _change(folder, quantization_config={"quant_method": "gptq"}), r"packed by gptq"),
    "awq": (lambda folder: _change(folder, quantization_config={"quant_method": "awq"}), r"packed by awq"),
    "broken": (lambda folder: (folder / "config.json").write_text("no"), r"config\.json.* is not JSON"),
    "bin": (
        lambda folder: _keep_only(folder, "pytorch_model.bin"),
        r"PyTorch files alone.*pytorch_model\.bin",
    ),
    "gguf": (lambda folder: _keep_only(folder, "some.Q4_K_M.gguf"), r"GGUF alone.*some\.Q4_K_M\.gguf"),
    "other": (lambda folder: _keep_only(folder, "consolidated.safetensors"), r"consolidated\.safetensors"),
    "none": (_keep_only, r"it holds no weights"),
    "adapter": (
        lambda folder: _keep_only(folder, "adapter_model.safetensors", without_config=True),
        r"has no config\.json; it holds an adapter alone",
    ),
    "gguf without config": (
        lambda folder: _keep_only(folder, "some.gguf", without_config=True),
        r"has no config\.json; it holds weights as GGUF",
    ),
    "tiktoken": (
        lambda folder: _without(folder, "tokenizer.json", "tiktoken.model"),
        r"no tokenizer\.json \(tiktoken\.model alone",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["type", "key", "fp8", "bin", "adapter", "tiktoken"])
def test_a_hub_model_that_cannot_be_served_is_refused_before_its_weights_are_fetched(
    model: Path, tmp_path: Path, name: str
) -> None:
    """Names of files and config.json are enough: of the weights not even a header is asked for."""
    spoil, reason = UNSERVED[name]
    spoil(model)
    with FakeHub(model) as served:
        done = run_on_hub(served, tmp_path)
    assert done.returncode == 2
    assert re.search(reason, done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    assert not [name for name in served.sent_bytes if name.endswith((".safetensors", ".bin", ".gguf"))]


@pytest.mark.parametrize(("spoil", "reason"), UNSERVED.values(), ids=UNSERVED)
def test_a_folder_that_cannot_be_served_is_refused_with_the_same_sentence(
    tmp_path: Path, spoil: Callable[[Path], object], reason: str
) -> None:
    """Where a model comes from changes nothing of what is said of it."""
    folder = make_checkpoint(tmp_path / "model", "qwen3")
    spoil(folder)
    with pytest.raises(ModelError, match=reason):
        read_model_files(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda folder: _change(folder, intermediate_size=96), r"shape"),
        (lambda folder: _change(folder, num_hidden_layers=5), r"no weights of layer 4"),
        (lambda folder: _retype(folder, "I32"), r"is stored as I32, which is not served"),
        (
            lambda folder: (folder / "model-00002-of-00002.safetensors").unlink(),
            r"has no model-00002-of-00002",
        ),
        (
            lambda folder: (folder / "model-00001-of-00002.safetensors").write_bytes(b"x" * 99),
            r"someone/some-model",
        ),
        (lambda folder: (folder / INDEX_NAME).write_text("{}"), r"has no weight_map"),
    ],
)
def test_a_hub_model_whose_headers_do_not_fit_is_refused_before_its_weights_are_fetched(
    model: Path, tmp_path: Path, spoil: Callable[[Path], object], reason: str
) -> None:
    """Headers tell which tensors there are, of which shape and type; the cache gets no weights."""
    spoil(model)
    with FakeHub(model) as served:
        done = run_on_hub(served, tmp_path)
    assert done.returncode == 2
    assert re.search(reason, done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_a_full_disk_is_named() -> None:
    """The download stops in the middle: what to do is said, not the number of the error."""
    wanted = hub.Wanted("a/b", folder=Path("/models/b"))
    said = hub.describe_error(wanted, OSError(errno.ENOSPC, "No space left on device"))
    assert str(said) == "the disk of /models/b is full: make room, then run this again to go on"


@pytest.mark.parametrize("name", ["../config.json", "*.json", "a/b.json"])
def test_only_plain_names_are_fetched(name: str) -> None:
    """What names a path or a pattern is refused."""
    with pytest.raises(CannotDownload, match="not the name"):
        hub.name_files(["config.json", name])
