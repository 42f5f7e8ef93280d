"""Putting MODEL_REPO's model into place: the command in this process, and twice in one of its own."""

import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from config import REPOSITORY_ROOT as ROOT
from distributed.models import hub
from distributed.planning.checkpoint import INDEX_NAME
from distributed.planning.hub_model import CannotDownload
from distributed.prepare import main
from tests.fakes.checkpoints import edit_config, make_checkpoint
from tests.fakes.fake_hub import REVISION, FakeHub


def run_process(environment: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    """Run the command as `start` does."""
    command = [sys.executable, "-m", "distributed.prepare"]
    env = os.environ | environment
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model in two files, and code that must not be fetched; MODEL_REPO names its folder."""
    folder = make_checkpoint(tmp_path / "model", "qwen3")
    (folder / "modeling.py").write_text("raise SystemExit\n")
    monkeypatch.setenv("STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("MODEL_REPO", str(folder))
    return folder


@pytest.fixture
def served(model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """The model on a Hub of our own, which huggingface_hub's real code asks; MODEL_REPO names it there."""
    with FakeHub(model) as made:
        made.take_over(monkeypatch, cache)
        yield made


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.mark.slow
def test_a_sound_folder_is_printed_and_an_unsound_one_ends_with_a_sentence(model: Path) -> None:
    """Standard output has the folder and nothing else; what is wrong stands on standard error."""
    done = run_process({})
    assert (done.returncode, done.stdout.strip()) == (0, str(model))
    done = run_process({"MODEL_REPO": f"{model}-absent"})
    assert (done.returncode, done.stdout) == (2, "")
    assert "there is no folder" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_hub_name_that_cannot_be_fetched_ends_with_its_name(
    served: FakeHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Off the network the command says which repository it wanted."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert main([]) == 2
    assert "someone/some-model cannot be downloaded" in capsys.readouterr().err


def test_a_download_larger_than_the_disk_is_refused_with_the_numbers(tmp_path: Path) -> None:
    """The sentence names the repository, what it needs and what is free."""
    with pytest.raises(CannotDownload, match=r"a/b needs 1000000\.0 GB more.*GB free"):
        hub.check_disk("a/b", 10**15, tmp_path / "not" / "there")


@pytest.mark.slow
def test_a_hub_model_is_downloaded_once_and_without_code(
    model: Path, served: FakeHub, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The folder is printed; the second time nothing is asked for. Progress comes in lines."""
    done = run_process(served.environment(cache))
    assert done.returncode == 0, done.stderr
    assert "100% of" in done.stderr
    folder = Path(done.stdout.strip())
    assert {path.name for path in folder.iterdir()} == {path.name for path in model.iterdir()} - {
        "modeling.py"
    }
    served.sent_bytes.clear()
    assert main([]) == 0
    assert capsys.readouterr().out == done.stdout
    assert not served.sent_bytes


def test_only_the_named_files_of_a_revision_are_fetched(
    model: Path, served: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A host with part of the layers gets its files and no others, and tells how far it is."""
    names = ("config.json", "model-00002-of-00002.safetensors")
    into = tmp_path / "part"
    assert main(["--repo", served.repo, "--revision", REVISION, "--into", str(into), *names]) == 0
    assert {path.name for path in into.iterdir() if path.is_file()} == set(names)
    assert set(served.sent_bytes) >= set(names)
    assert "model-00001-of-00002.safetensors" not in served.sent_bytes
    size = sum((model / name).stat().st_size for name in names)
    assert json.loads(capsys.readouterr().out.splitlines()[-2]) == {"done_bytes": size}
    assert (into / names[1]).read_bytes() == (model / names[1]).read_bytes()


def test_a_broken_download_goes_on_where_it_ended(model: Path, served: FakeHub, tmp_path: Path) -> None:
    """A connection that breaks off costs at most huggingface_hub's last 10 MB, not the file's beginning."""
    large = model / "model-large.safetensors"
    large.write_bytes(bytes(range(256)) * (96 << 10))
    size = large.stat().st_size
    into = tmp_path / "part"
    served.break_after_bytes = size - (1 << 20)
    assert main(["--repo", served.repo, "--revision", REVISION, "--into", str(into), large.name]) == 0
    assert (into / large.name).read_bytes() == large.read_bytes()
    assert size <= served.sent_bytes[large.name] < size + 10_000_000


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda served: setattr(served, "is_gated", True), "someone/some-model is gated"),
        (
            lambda served: setattr(served, "file_status", 403),
            "does not allow you to read someone/some-model (403)",
        ),
        (lambda served: setattr(served, "file_status", 503), "someone/some-model cannot be downloaded"),
        (lambda served: setattr(served, "repo", "someone/else"), "the Hub has no someone/some-model"),
    ],
)
def test_what_the_hub_refuses_is_told_in_a_sentence(
    served: FakeHub, capsys: pytest.CaptureFixture[str], spoil: Callable[[FakeHub], None], reason: str
) -> None:
    """Terms that were not accepted, a name that is not there: said with what helps."""
    spoil(served)
    assert main([]) == 2
    assert reason in capsys.readouterr().err


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
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "type": (
        lambda folder: edit_config(folder, model_type="gemma3n"),
        r"'gemma3n' is not served; served are .*deepseek",
    ),
    "images": (
        lambda folder: edit_config(folder, model_type="idefics3", text_config={"model_type": "llama"}),
        r"'idefics3' \(its text_config is of type 'llama'\) is not served",
    ),
    "key": (lambda folder: edit_config(folder, attention_bias=True), r"attention_bias = True is not served"),
    "wrong": (lambda folder: edit_config(folder, hidden_size="64"), r"hidden_size = '64' is not a whole"),
    "fp8": (lambda folder: edit_config(folder, quantization_config={"quant_method": "fp8"}), r"by fp8"),
    "broken": (lambda folder: (folder / "config.json").write_text("no"), r"config\.json.* is not JSON"),
    "bin": (
        lambda folder: _keep_only(folder, "pytorch_model.bin"),
        r"only PyTorch weights.*pytorch_model\.bin",
    ),
    "gguf": (lambda folder: _keep_only(folder, "some.Q4_K_M.gguf"), r"only GGUF weights.*some\.Q4_K_M\.gguf"),
    "other": (lambda folder: _keep_only(folder, "consolidated.safetensors"), r"consolidated\.safetensors"),
    "none": (_keep_only, r"it holds no weights"),
    "adapter": (
        lambda folder: _keep_only(folder, "adapter_model.safetensors", without_config=True),
        r"has no config\.json; it holds only an adapter",
    ),
    "gguf without config": (
        lambda folder: _keep_only(folder, "some.gguf", without_config=True),
        r"has no config\.json; it holds only GGUF weights",
    ),
    "tiktoken": (
        lambda folder: _without(folder, "tokenizer.json", "tiktoken.model"),
        r"no tokenizer\.json \(tiktoken\.model alone",
    ),
    "a layer more": (
        lambda folder: edit_config(folder, num_hidden_layers=3),
        r"layer 3, but num_hidden_layers is 3",
    ),
    "no layer": (lambda folder: edit_config(folder, num_hidden_layers=5), r"no weights of layer 4"),
    "shape": (lambda folder: edit_config(folder, intermediate_size=96), r"shape"),
    "format": (lambda folder: _retype(folder, "I32"), r"is stored as I32, which is not served"),
    "no file": (
        lambda folder: (folder / "model-00002-of-00002.safetensors").unlink(),
        r"model-00002-of-00002",
    ),
    "header": (lambda folder: (folder / "model-00001-of-00002.safetensors").write_bytes(b"x" * 99), "model"),
    "no map": (lambda folder: (folder / INDEX_NAME).write_text("{}"), r"has no weight_map"),
    "index": (lambda folder: (folder / INDEX_NAME).write_text("[]"), rf"{INDEX_NAME} is not a JSON object"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), r"no tokenizer\.json"),
    "no config": (lambda folder: (folder / "config.json").unlink(), r"config\.json"),
}


@pytest.mark.parametrize(("damage", "reason"), DAMAGES.values(), ids=DAMAGES)
def test_an_unsound_folder_ends_with_a_sentence(
    model: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], object], reason: str
) -> None:
    """What is missing or not served is named; nothing is printed on standard output."""
    damage(model)
    assert main([]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert re.search(reason, said.err), said.err


@pytest.mark.parametrize(
    ("name", "asks_for_headers"),
    [
        *((name, False) for name in ("type", "key", "fp8", "bin", "adapter", "tiktoken")),
        *((name, True) for name in ("shape", "no layer", "format", "no file", "header", "no map")),
    ],
)
def test_a_hub_model_is_refused_with_the_same_sentence_before_its_weights_are_fetched(
    model: Path,
    served: FakeHub,
    cache: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    asks_for_headers: bool,
) -> None:
    """Names of files, config.json and, if these are good, headers are enough; the cache gets no weights."""
    damage, reason = DAMAGES[name]
    damage(model)
    assert main([]) == 2
    said = capsys.readouterr().err
    assert re.search(reason, said), said
    assert not list(cache.rglob("*.safetensors"))
    asked = [name for name in served.sent_bytes if name.endswith((".safetensors", ".bin", ".gguf"))]
    assert asks_for_headers or not asked


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
