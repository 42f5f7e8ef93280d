"""The files of a model that a host needs, their marks, and the progress of a copy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cluster.hosts.copy_progress import CopyProgress
from cluster.hosts.hosts import Host
from cluster.hosts.model_files import CopyLines, Shipment, check_room, find_lacking, folder_name
from cluster.hosts.model_sums import FileSum, FolderSums, ModelFilesRefused
from cluster.hosts.remote_program import make_program
from cluster.hosts.worker_setup import Worker
from distributed.planning.checkpoint import BadCheckpoint, tensor_files
from distributed.planning.layer_plan import split_layers, weights_hash
from distributed.planning.stage_files import (
    SUMS_NAME,
    WeightsMark,
    local_sums_file,
    mark_weights,
    needed_files,
    read_sums,
)
from distributed.ring.handshake import RefusedStart, RingPlan, check_weights
from distributed.ring.watchdog import RankStart
from distributed.utils import shard_and_load
from tests.fakes.checkpoints import make_checkpoint

SMALL = {"config.json", "model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json"}
GB = 10**9


def make_layered(folder: Path, variant: str = "llama") -> Path:
    """Make a model of 4 layers whose tensors lie in 10 files, in the order of their names."""
    return make_checkpoint(folder, variant, num_files=12)


def weights_among(names: Sequence[str]) -> set[str]:
    """The weight files among some names."""
    return {name for name in names if name.endswith(".safetensors")}


def sum_files(folder: Path, sizes: dict[str, int | None], **question: Any) -> dict[str, Any]:
    """Run the program that sums up a folder; what it says."""
    asked = {"folder": str(folder), "sums_file": None, "sizes": sizes, "makes_folder": False} | question
    done = subprocess.run(
        [sys.executable, "-I", "-"], input=make_program("file_sums", asked), capture_output=True, check=True
    )
    answer = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(answer, dict)
    return answer


@pytest.mark.parametrize("variant", ["llama", "llama-tied", "deepseek_v2"])
def test_every_rank_loads_from_a_folder_with_its_own_files_only(tmp_path: Path, variant: str) -> None:
    """The index names missing files; the stage holds the same as from the whole folder."""
    whole = make_layered(tmp_path / "whole", variant)
    layers = split_layers(4, (1, 2, 1))
    for rank in range(3):
        names = needed_files(whole, layers, [rank])
        assert set(names) >= SMALL
        part = tmp_path / f"part-{rank}"
        part.mkdir()
        for name in names:
            (part / name).symlink_to(whole / name)
        stage = shard_and_load(part, rank, 3, layers=layers)
        assert stage.model.weights_bytes == shard_and_load(whole, rank, 3, layers=layers).model.weights_bytes
        assert weights_among(names) < set(tensor_files(whole).values())
        assert weights_hash(part) == weights_hash(whole)


def test_a_host_with_several_ranks_gets_the_files_of_all(tmp_path: Path) -> None:
    """The union; together the ranks need every file."""
    folder = make_layered(tmp_path)
    layers = split_layers(4, (1, 2, 1))
    both = weights_among(needed_files(folder, layers, [1, 2]))
    assert both == weights_among(needed_files(folder, layers, [1])) | weights_among(
        needed_files(folder, layers, [2])
    )
    assert weights_among(needed_files(folder, layers, range(3))) == set(tensor_files(folder).values())


def test_a_file_that_is_missing_is_named_with_the_host(tmp_path: Path) -> None:
    """A rank that lacks a file of its own stops and names the file, the host and the fix."""
    folder = make_layered(tmp_path)
    layers = split_layers(4, (2, 2))
    name = min(weights_among(needed_files(folder, layers, [1])))
    (folder / name).unlink()
    with pytest.raises(BadCheckpoint, match=rf"{name} is missing on \S+: .*launch.sh start"):
        shard_and_load(folder, 1, 2, layers=layers)
    with pytest.raises(BadCheckpoint, match=name):
        mark_weights(folder, layers, 1, folder / SUMS_NAME)
    with pytest.raises(BadCheckpoint, match=r"config.json is missing on"):
        weights_hash(tmp_path / "absent")


def test_marks_notice_other_tensors_at_once_and_other_bytes_by_known_sums(tmp_path: Path) -> None:
    """Headers are always compared; contents where both sides know the files' sums, else they are not."""
    a, b = make_layered(tmp_path / "a"), make_layered(tmp_path / "b")
    other = make_checkpoint(tmp_path / "other", "llama", seed=1, num_files=12)
    shaped = make_checkpoint(tmp_path / "shaped", "llama", num_files=12, intermediate_size=96)
    layers = split_layers(4, (2, 2))

    def mark(folder: Path) -> WeightsMark:
        return mark_weights(folder, layers, 1, folder / SUMS_NAME)

    assert mark(a) == mark(b)
    assert mark(a).differs_from(mark(shaped)) == "headers"
    assert mark(a).differs_from(mark(other)) is None  # the same shapes, and no sums yet
    for folder in (a, b, other):
        sum_files(folder, dict.fromkeys(needed_files(folder, layers, [1])))
    assert mark(a) == mark(b)
    assert mark(a).contents
    assert mark(a).differs_from(mark(other)) == "contents"
    assert WeightsMark().differs_from(mark(a)) is None


def test_a_rank_with_other_weights_refuses_the_start() -> None:
    """HELLO's message names the rank, its host, the folder, the difference and the fix."""
    mark = WeightsMark("a" * 64, "b" * 64)
    plan = RingPlan(
        epoch=1,
        ring_size=2,
        versions="",
        code_hash="",
        weights_hash="",
        model_folder="/w/models/m",
        layers=((2, 4), (0, 2)),
        dequantize=False,
        products=None,
        step_timeout_seconds=1.0,
        load_timeout_seconds=1.0,
        weights_marks=(WeightsMark(), mark),
    )
    assert msgspec.convert(json.loads(json.dumps(asdict(plan))), RingPlan) == plan
    start = RankStart(1, 1, ("127.0.0.1:1", "127.0.0.1:2"), "secret", host_name="mac2")
    check_weights(plan, start, WeightsMark("a" * 64))
    with pytest.raises(RefusedStart, match=r"rank 1 on mac2 .*/w/models/m.*contents.*launch.sh start"):
        check_weights(plan, start, replace(mark, contents="c" * 64))


def test_sums_are_believed_while_size_and_time_stay(tmp_path: Path) -> None:
    """The second time nothing is read; a file that was written to is summed up anew."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"a" * 1000)
    first = sum_files(tmp_path, {path.name: None, "absent.json": None})
    assert first["files"].keys() == {path.name}
    assert first["free_bytes"] > 0
    sums = json.loads((tmp_path / SUMS_NAME).read_text())
    sums["files"][path.name]["sha256"] = "0" * 64
    (tmp_path / SUMS_NAME).write_text(json.dumps(sums))
    assert sum_files(tmp_path, {path.name: None})["files"][path.name]["sha256"] == "0" * 64
    assert read_sums(tmp_path, tmp_path / SUMS_NAME) == {path.name: "0" * 64}
    path.write_bytes(b"b" * 1000)
    os.utime(path, ns=(1, 1))
    assert read_sums(tmp_path, tmp_path / SUMS_NAME) == {}
    assert sum_files(tmp_path, {path.name: 1000})["files"][path.name]["sha256"] not in ("0" * 64, None)


def test_a_file_of_another_size_is_not_read(tmp_path: Path) -> None:
    """Half a file is known to be one by its size alone."""
    (tmp_path / "a.json").write_bytes(b"half")
    assert sum_files(tmp_path, {"a.json": 8})["files"] == {"a.json": {"size": 4, "sha256": None}}


def test_what_a_killed_copy_has_left_is_removed(tmp_path: Path) -> None:
    """rsync's temporary files go, and nothing else."""
    for name in (".model.safetensors.Ab12Xy", ".model.safetensors.keep", "model.safetensors", ".gitignore"):
        (tmp_path / name).write_text("")
    sum_files(tmp_path, {"model.safetensors": None}, makes_folder=True)
    assert {path.name for path in tmp_path.iterdir()} == {
        ".model.safetensors.keep",
        "model.safetensors",
        ".gitignore",
        SUMS_NAME,
    }


def test_damaged_sums_are_no_sums(tmp_path: Path) -> None:
    """A sums file that is cut short costs time, nothing else."""
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / SUMS_NAME).write_text('{"files": {"a.json":')
    assert read_sums(tmp_path, tmp_path / SUMS_NAME) == {}
    assert sum_files(tmp_path, {"a.json": None})["files"]["a.json"]["sha256"]


def make_shipment(**sizes: int) -> Shipment:
    """Make a shipment of files with those sizes."""
    host = Host("mac2", "mac2", "10.0.0.2", 1)
    files = {name: FileSum(size, "a" * 64) for name, size in sizes.items()}
    return Shipment(Worker(host, "~/w"), Path("/here"), "models/m", files)


def test_what_is_missing_differs_or_is_half_there_is_lacking() -> None:
    """By name and sum."""
    wanted = {name: FileSum(10, "a") for name in ("same", "absent", "other", "half")}
    there = {"same": FileSum(10, "a"), "other": FileSum(10, "b"), "half": FileSum(5, None)}
    assert set(find_lacking(wanted, there)) == {"absent", "other", "half"}


def test_a_disk_that_is_too_small_is_refused_with_the_numbers() -> None:
    """What is there already counts, but a file that is replaced lies there twice for a while."""
    shipment = make_shipment(a=6 * GB, b=4 * GB)
    check_room(shipment, FolderSums("/w/models/m", 11 * GB, {}), shipment.files)
    with pytest.raises(
        ModelFilesRefused, match=r"mac2: 2 files .* need 10\.00 GB more, its disk has 10\.90 GB"
    ):
        check_room(shipment, FolderSums("/w/models/m", 10_900_000_000, {}), shipment.files)
    half = {"a": FileSum(3 * GB, None)}
    check_room(shipment, FolderSums("/w/models/m", 11 * GB, half), shipment.files)
    with pytest.raises(ModelFilesRefused, match="WORKER_DIR"):
        check_room(shipment, FolderSums("/w/models/m", 10_900_000_000, half), shipment.files)


def test_folders_of_two_models_of_one_name_differ(tmp_path: Path) -> None:
    """The name is safe for a shell, and has a mark of config and index."""
    a = make_checkpoint(tmp_path / "a", "llama")
    b = make_checkpoint(tmp_path / "b", "qwen3")
    assert folder_name("my model; rm", a).startswith("my_model_rm-")
    assert folder_name("m", a) != folder_name("m", b)
    assert local_sums_file(a, tmp_path) != local_sums_file(b, tmp_path)


@pytest.mark.parametrize(
    "said",
    [
        b"a.safetensors\n         32,768   0%    0.00kB/s    0:00:00\r          1,000 100%    3.00MB/s"
        b"    0:00:00 (xfer#1, to-check=1/2)\nb.safetensors\n         500  25%    1.00MB/s    0:00:01\r",
        b"a.safetensors\n          1.000 100%    3,00MB/s    0:00:00\nb.safetensors\n     500  25%  1MB/s\r",
    ],
)
def test_progress_of_old_and_new_rsync_is_read(said: bytes) -> None:
    """Bytes of the files that are done, and of the one that is being copied."""
    told: list[int] = []
    lines = CopyLines({"a.safetensors": FileSum(1000, "a"), "b.safetensors": FileSum(2000, "b")}, told.append)
    for at in range(0, len(said), 7):
        lines.feed(said[at : at + 7])
    assert told[-1] == 1500


def test_copies_are_told_in_steps_with_their_speed() -> None:
    """A bar, what of how much, how fast; not for every block."""
    now = [0.0]
    said: list[str] = []
    progress = CopyProgress(lambda host, text: said.append(f"{host} {text}"), lambda: now[0])
    for done in range(1001):
        now[0] += 0.001
        progress.report("mac2", done * 10**6, 1000 * 10**6, "copying")
    assert len(said) == 21
    assert said[-1].startswith("mac2 copying ████████████████ 100 % of 1.0 GB, ")
    assert said[-1].endswith("/s")
