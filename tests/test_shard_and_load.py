"""A rank loads its own layers and no more, in files read and in memory at the peak."""

import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from distributed.sharding import DoesNotFit
from distributed.utils import shard_and_load
from tests.checkpoints import make_checkpoint, write_weights

ROOT = Path(__file__).resolve().parent.parent
MAX_PEAK_SHARE = 1.1
BIG = {"hidden_size": 512, "intermediate_size": 1536, "num_attention_heads": 8, "vocab_size": 16000}
# What is packed is in memory twice for a moment: no module may be half of what a rank holds.
DEEP = {**BIG, "num_hidden_layers": 16, "vocab_size": 8000}
# A fresh process, its imports paid for by a tiny model, loads one rank; its peak is reset in between.
MEASURE = """
import json, sys
from pathlib import Path
from distributed.backends.cpu.blas import load_fast_blas
load_fast_blas("auto", 1)
from distributed.utils import shard_and_load

def status(key):
    line = next(line for line in open("/proc/self/status") if line.startswith(key))
    return int(line.split()[1]) * 1024

job = json.loads(sys.argv[1])
options = {"dequantize": job["dequantize"], "cpu_products": job["cpu_products"]}
shard_and_load(Path(job["tiny"]), 0, 1, **options)
open("/proc/self/clear_refs", "w").write("5")
before = status("VmHWM")
model = shard_and_load(Path(job["folder"]), job["rank"], 2, **options)
print(json.dumps([model.weights_bytes, status("VmHWM") - before]))
"""

needs_proc = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="measures by Linux's /proc"
)


def measure(tiny: Path, folder: Path, **options: Any) -> list[tuple[int, int]]:
    """Return of each of two ranks the bytes of weights it holds and those its process grew by at the peak."""
    processes = []
    for rank in (0, 1):
        job = {"folder": str(folder), "tiny": str(tiny), "rank": rank, **options}
        command = [sys.executable, "-c", MEASURE, json.dumps(job)]
        processes.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True))
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    return [tuple(json.loads(output)) for output in outputs]


@functools.cache
def make_stored(folder: Path, stored: str) -> Path:
    """Make a folder of about 100 MB whose weights are stored as float32, bfloat16 or 8-bit; once."""
    if stored == "8-bit":
        sizes: dict[str, Any] = {"num_hidden_layers": 8, "moe_intermediate_size": 256, "n_routed_experts": 16}
        return make_checkpoint(folder, "deepseek_v2-8bit", num_files=4, **BIG, **sizes)
    make_checkpoint(folder, "llama", num_files=1, **DEEP)
    if stored == "bfloat16":
        (file,) = folder.glob("*.safetensors")
        weights = {name: array.astype(mx.bfloat16) for name, array in mx.load(str(file)).items()}
        mx.eval(weights)
        write_weights(folder, weights)
    return folder


@pytest.fixture(scope="module")
def shared_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all tests of this file share."""
    return tmp_path_factory.mktemp("stored")


@needs_proc
@pytest.mark.slow
@pytest.mark.parametrize(
    ("stored", "dequantize", "cpu_products"),
    [
        ("float32", False, None),
        ("bfloat16", False, None),
        ("8-bit", False, None),
        ("8-bit", True, None),
        ("float32", False, "blas"),
        ("float32", False, "auto"),
        ("bfloat16", False, "auto"),
    ],
)
def test_a_rank_peaks_at_its_own_tensors(
    tmp_path: Path, shared_path: Path, stored: str, dequantize: bool, cpu_products: str | None
) -> None:
    """Peak resident memory stays within a tenth of what the rank keeps, cast and unpacked weights too."""
    tiny = make_checkpoint(tmp_path / "tiny", "deepseek_v2-8bit" if stored == "8-bit" else "llama")
    folder = make_stored(shared_path / stored, stored)
    measured = measure(tiny, folder, dequantize=dequantize, cpu_products=cpu_products)
    for rank, (own_bytes, peak_bytes) in enumerate(measured):
        assert own_bytes > 20_000_000
        assert peak_bytes <= MAX_PEAK_SHARE * own_bytes, (rank, peak_bytes / own_bytes)


def test_rank_0_has_the_last_layers_and_the_head(tmp_path: Path) -> None:
    """Without a plan the ranks share by cost, from the last layers down."""
    folder = make_checkpoint(tmp_path, "llama")
    models = [shard_and_load(folder, rank, 3) for rank in range(3)]
    assert [layer for model in reversed(models) for layer in model.layers] == [0, 1, 2, 3]
    assert [(model.is_first, model.is_last) for model in models] == [
        (False, True),
        (False, False),
        (True, False),
    ]


def test_a_given_plan_is_followed(tmp_path: Path) -> None:
    """The layers of every rank come from rank 0 of a running ring."""
    folder = make_checkpoint(tmp_path, "llama")
    assert shard_and_load(folder, 1, 2, layers=[range(1, 4), range(1)]).layers == range(1)


def test_a_ring_with_more_ranks_than_layers_is_refused(tmp_path: Path) -> None:
    """Four layers cannot be cut into five stages."""
    with pytest.raises(DoesNotFit, match="5 ranks"):
        shard_and_load(make_checkpoint(tmp_path, "llama"), 4, 5)
