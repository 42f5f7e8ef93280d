"""The plan by each host's memory, and the files that go to each host, on hosts with real ssh and rsync."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from config import REPOSITORY_ROOT as ROOT
from distributed.planning.checkpoint import tensor_files
from distributed.planning.layer_plan import split_layers
from distributed.planning.stage_files import needed_files
from tests.cluster.on_hosts.namespaces import Hosts, NamespaceHost
from tests.cluster.on_hosts.prepared import WORKER_DIR, prepare_environment
from tests.fakes.checkpoints import make_checkpoint, write_weights

GB = 10**9
NUM_LAYERS = 12
LARGE_LAYER_VALUES = 1 << 20  # 4 MiB of float32


@dataclass
class Placer:
    """Plans and copies from the first host."""

    hosts: Hosts
    model: Path

    def run(self, *flags: str, **extra: str) -> dict[str, Any]:
        """Do it once; what the program printed."""
        first = self.hosts.first
        settings = {
            "STATE_DIR": str(first.home / "state"),
            "MODEL_REPO": str(self.model),
            "WORKER_HOSTS": "mac2,mac3",
            "KV_CACHE_RESERVED_MEMORY_MB": "64",
        }
        words = [sys.executable, "-m", "tests.cluster.on_hosts.place_model", *flags]
        done = first.run(words, cwd=ROOT, env=settings | extra, check=True)
        result = json.loads(done.stdout.splitlines()[-1])
        assert isinstance(result, dict)
        return result


def make_large_checkpoint(folder: Path) -> Path:
    """Make a model of 12 layers of 8 MiB, a file for each layer and one for the rest."""
    make_checkpoint(folder, "llama", num_hidden_layers=NUM_LAYERS)
    for path in folder.glob("model*"):
        path.unlink()
    mx.random.seed(0)
    ends = {name: mx.random.normal((64, 64)) for name in ("model.embed_tokens.weight", "lm_head.weight")}
    write_weights(folder, ends | {"model.norm.weight": mx.ones(64)})
    index: dict[str, str] = tensor_files(folder)
    for layer in range(NUM_LAYERS):
        names = [f"model.layers.{layer}.mlp.{part}_proj.weight" for part in ("up", "down")]
        file = f"model-layer-{layer:02d}.safetensors"
        weights = {name: mx.random.normal((1024, LARGE_LAYER_VALUES // 1024)) for name in names}
        mx.save_safetensors(str(folder / file), weights, metadata={"format": "mlx"})
        index |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model that all tests of this file place: links to files elsewhere, as in the Hub's cache."""
    files = make_large_checkpoint(tmp_path_factory.mktemp("models") / "blobs")
    folder = files.with_name("layered")
    folder.mkdir()
    for path in files.iterdir():
        (folder / path.name).symlink_to(Path("..") / "blobs" / path.name)
    return folder


@pytest.fixture
def placer(shared_hosts: Hosts, model: Path) -> Placer:
    """Three hosts with room and without files."""
    for host in shared_hosts:
        host.limit_memory(8 * GB, 4 * GB)
        shutil.rmtree(host.home / WORKER_DIR, ignore_errors=True)
        shutil.rmtree(host.home / "state", ignore_errors=True)
    return Placer(shared_hosts, model)


def files_in(folder: str) -> set[str]:
    """The files of a model folder on some host, but for the sums and the Hub's notes."""
    return {path.name for path in Path(folder).iterdir()} - {".sums.json", ".cache"}


def layers_of(counts: Sequence[int]) -> list[range]:
    """Each rank's layers, rank 0 the last."""
    return list(split_layers(sum(counts), counts))


def link_bytes(host: NamespaceHost) -> int:
    """Bytes that a host has sent."""
    words = ["sh", "-c", "cat /sys/class/net/*/statistics/tx_bytes"]
    return sum(int(line) for line in host.run(words, check=True).stdout.split())


def test_each_host_gets_its_own_files_once(placer: Placer) -> None:
    """Only files with own tensors and the small ones arrive; the second time nothing is sent or read, but for
    a file with one other byte. With little free memory a host gets few layers.
    """
    placed = placer.run()
    layers = layers_of(placed["counts"])
    assert len(layers) == 3
    assert max(placed["counts"]) - min(placed["counts"]) <= 1
    for rank, name in ((1, "mac2"), (2, "mac3")):
        folder = placed["folders"][name]
        assert folder.startswith(str(placer.hosts[rank].home))
        assert files_in(folder) == set(needed_files(placer.model, layers, [rank]))
        for path in Path(folder).iterdir():
            assert path.name == ".sums.json" or path.read_bytes() == (placer.model / path.name).read_bytes()
            assert path.stat().st_mode & 0o077 == 0
    again = placer.run()
    assert again["copied"] == {}
    assert again["folders"] == placed["folders"]

    name = f"model-layer-{layers[1].start:02d}.safetensors"
    damaged = Path(placed["folders"]["mac2"]) / name
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    assert placer.run()["copied"] == {"mac2": len(content)}
    assert damaged.read_bytes() == (placer.model / name).read_bytes()

    rank_bytes, layer_bytes, kv_bytes = 512 << 20, 8 << 20, 64 << 20
    placer.hosts[1].limit_memory(8 * GB, rank_bytes + kv_bytes + 2 * layer_bytes)
    counts = placer.run()["counts"]
    assert counts[1] < min(counts[0], counts[2])
    assert sum(counts) == NUM_LAYERS


def test_what_cannot_fit_is_refused_before_anything_is_copied(placer: Placer) -> None:
    """The sentence has the numbers of every host; nothing is made on a worker."""
    for host in placer.hosts:
        host.limit_memory(8 * GB, 560 << 20)
    refused = placer.run()
    assert "mac2 has" in refused["error"]
    assert "needs" in refused["error"]
    assert "in total" in refused["error"]
    assert refused["copied"] == {}
    assert not (placer.hosts[1].home / WORKER_DIR).exists()


def test_an_interrupted_copy_goes_on_where_it_ended(placer: Placer, tmp_path: Path) -> None:
    """rsync is killed in the middle of a file; the next start sends only the rest of it."""
    num_bytes = (placer.model / "model-layer-00.safetensors").stat().st_size
    (tmp_path / "rsync").write_text('#!/bin/sh\nexec /usr/bin/rsync --bwlimit=2000 "$@"\n')
    (tmp_path / "rsync").chmod(0o755)
    slow = f"{tmp_path}:{os.environ['PATH']}"
    killed = placer.run("--kill-rsync", PATH=slow, LAYER_SPLIT="10,1,1")
    assert "continues where it ended" in killed["error"]
    there = [
        path.stat().st_size
        for host in (placer.hosts[1], placer.hosts[2])
        for path in (host.home / WORKER_DIR / "models").rglob("model-layer-*")
    ]
    assert num_bytes // 8 < sum(there) < 2 * num_bytes
    before = link_bytes(placer.hosts.first)
    assert "folders" in placer.run(LAYER_SPLIT="10,1,1")
    sent = link_bytes(placer.hosts.first) - before
    assert sent < 2 * num_bytes - sum(there) + num_bytes // 8


@pytest.mark.long
def test_hosts_fetch_their_files_from_the_hub_themselves(hosts: Hosts, tmp_path: Path) -> None:
    """MODEL_SYNC=hub: each worker's environment fetches its files, at the revision that is here; no rsync."""
    model = make_checkpoint(tmp_path / "model", "llama", num_files=12)
    for host in hosts:
        host.limit_memory(8 * GB, 4 * GB)
    for host in (hosts[1], hosts[2]):
        prepare_environment(host)
    words = [sys.executable, "-m", "tests.fakes.fake_hub", str(model), hosts.first.address]
    with hosts.first.popen(words, cwd=ROOT) as served:
        assert served.stdout is not None
        settings = {
            "HF_ENDPOINT": served.stdout.readline().strip(),
            "HF_HUB_DISABLE_XET": "1",
            "MODEL_REPO": "someone/some-model",
            "MODEL_SYNC": "hub",
            "MODEL_CACHE_DIR": str(hosts.first.home / "cache"),
        }
        prepare = [sys.executable, "-m", "distributed.prepare"]
        hosts.first.run(prepare, cwd=ROOT, env=settings, check=True)
        placer = Placer(hosts, model)
        placed = placer.run("--with-code", **settings)
        assert "folders" in placed, placed
        again = placer.run(**settings)
        assert again["copied"] == {}
        out, _ = served.communicate(timeout=60)
    sent = json.loads(out.splitlines()[-1])
    layers = layers_of(placed["counts"])
    for rank, name in ((1, "mac2"), (2, "mac3")):
        wanted = needed_files(model, layers, [rank])
        assert files_in(placed["folders"][name]) == set(wanted)
        for file in wanted:
            assert (Path(placed["folders"][name]) / file).read_bytes() == (model / file).read_bytes()
    assert sent["config.json"] == 3 * (model / "config.json").stat().st_size
