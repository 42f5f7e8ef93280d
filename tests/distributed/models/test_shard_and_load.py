"""A rank loads its own layers and no more, in files read and in memory at the peak."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from config import REPOSITORY_ROOT as ROOT
from distributed.utils import shard_and_load
from tests.fakes.checkpoints import cast_weights, make_checkpoint

# A module that is packed is in memory twice for a moment, and the kernels' compiler takes some.
MAX_MORE_BYTES = 15_000_000
BIG = {
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_attention_heads": 8,
    "vocab_size": 1000,
    "num_hidden_layers": 8,
}
EXPERTS = {"moe_intermediate_size": 256, "n_routed_experts": 16}
# How the weights are stored, whether they are unpacked, and what multiplies: each loads in a way of its own.
WAYS: dict[str, dict[str, Any]] = {
    "as they are": {"stored": "float32", "dequantize": False, "products": None},
    "cast and packed": {"stored": "bfloat16", "dequantize": False, "products": "auto"},
    "8 bits": {"stored": "8-bit", "dequantize": False, "products": None},
    "unpacked": {"stored": "8-bit", "dequantize": True, "products": None},
}
# A process of its own for each rank, its imports paid for by a tiny model; the peak is reset in between.
MEASURE = """
import json, os, sys
from pathlib import Path
from distributed.backends.cpu.blas import load_fast_blas
load_fast_blas("auto", 1)
from distributed.backends.choose import choose_backend
from distributed.utils import shard_and_load

def status(key):
    line = next(line for line in open("/proc/self/status") if line.startswith(key))
    return int(line.split()[1]) * 1024

def measure(folder, tiny, rank, products, **options):
    options["backend"] = choose_backend(products=products)
    shard_and_load(Path(tiny), 0, 1, **options)
    open("/proc/self/clear_refs", "w").write("5")
    before = status("VmHWM")
    model = shard_and_load(Path(folder), rank, 2, **options)
    return [model.model.weights_bytes, status("VmHWM") - before]

for job in json.loads(sys.argv[1]):
    if not os.fork():
        print(json.dumps(measure(**job)), flush=True)
        os._exit(0)
    assert os.wait()[1] == 0, job
"""


def make_stored(folder: Path, stored: str, **sizes: Any) -> Path:
    """Make a folder whose weights are stored as float32, bfloat16 or 8-bit."""
    if stored == "8-bit":
        return make_checkpoint(folder, "deepseek_v2-8bit", num_files=4, **sizes)
    make_checkpoint(folder, "llama", num_files=1, **sizes)
    return cast_weights(folder, mx.bfloat16) if stored == "bfloat16" else folder


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> list[list[int]]:
    """The bytes of weights that each rank holds and those that its process grew by, way by way."""
    root = tmp_path_factory.mktemp("stored")
    folders = {}
    for stored in {way["stored"] for way in WAYS.values()}:
        sizes = BIG | (EXPERTS if stored == "8-bit" else {})
        folders[stored] = {
            "folder": str(make_stored(root / stored, stored, **sizes)),
            "tiny": str(make_stored(root / "tiny" / stored, stored)),
        }
    jobs = [{**folders[way["stored"]], **way, "rank": rank} for way in WAYS.values() for rank in (0, 1)]
    for job in jobs:
        del job["stored"]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, json.dumps(jobs)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measures by Linux's /proc")
@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_a_rank_peaks_at_its_own_tensors(measured: list[list[int]], way: str) -> None:
    """Peak resident memory is what the rank keeps and little more, for cast and unpacked weights too."""
    first = 2 * list(WAYS).index(way)
    for own_bytes, peak_bytes in measured[first : first + 2]:
        assert own_bytes > 2 * MAX_MORE_BYTES
        assert peak_bytes <= own_bytes + MAX_MORE_BYTES


def test_rank_0_has_the_last_layers_and_the_head(tmp_path: Path) -> None:
    """Without a plan the ranks share by cost, from the last layers down."""
    folder = make_checkpoint(tmp_path, "llama")
    runners = [shard_and_load(folder, rank, 3) for rank in range(3)]
    assert [layer for runner in reversed(runners) for layer in runner.model.layers] == [0, 1, 2, 3]
    assert [(runner.model.is_first, runner.model.is_last) for runner in runners] == [
        (False, True),
        (False, False),
        (True, False),
    ]
