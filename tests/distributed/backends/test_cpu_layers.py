"""Dense layers on NumPy give what MLX's give, step by step, whatever shape the steps have."""

from __future__ import annotations

import dataclasses
import itertools
import random
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from distributed.backends.backend import StageRunner
from distributed.backends.cpu.backend import CpuBackend
from distributed.backends.cpu.compiling import count_lanes
from distributed.backends.cpu.dense import DenseLayers
from distributed.backends.cpu.experts import Experts, place_experts, switch_layers
from distributed.backends.cpu.kernel_code import MAX_BLOCK_ROWS
from distributed.backends.cpu.kernels import Kernels
from distributed.backends.cpu.products import (
    BLOCK_WIDTH,
    MAX_WIDTH,
    Blas,
    Linear,
    NoPackedProducts,
    choose_kernels,
    on_blas,
)
from distributed.backends.cpu.threads import ProductThreads
from distributed.backends.stage import Stage
from distributed.planning.step import PrefixCopy, Resize, StageStep
from tests.fakes.checkpoints import VOCAB_SIZE, make_checkpoint, shared_checkpoint
from tests.services.stages import load_runners, load_whole, make_step

NUM_LAYERS = 4
TOLERANCE = 2e-4
DENSE = ("llama", "ministral3", "qwen2", "qwen3")
MIXTURES = ("qwen3_moe", "deepseek_v2", "deepseek_v2-groups")


needs_kernels = pytest.mark.skipif(choose_kernels("auto") is None, reason="no kernels on this machine")


def load(folder: Path, products: str | None, **options: Any) -> StageRunner:
    """Load the whole model as one stage."""
    return load_whole(folder, NUM_LAYERS, CpuBackend(products), **options)


class Twins:
    """The same stages with MLX's layers and with NumPy's, fed the same steps."""

    def __init__(self, folder: Path, cuts: tuple[int, ...] = (0, NUM_LAYERS), products: str = "auto") -> None:
        counts = [end - start for start, end in itertools.pairwise(cuts)]
        self.rings = [
            [Stage(runner) for runner in load_runners(folder, counts, CpuBackend(choice))]
            for choice in (None, products)
        ]

    def step(self, step: StageStep, ids: list[list[int]]) -> None:
        """Run one step through both and compare every token that counts, and the logits."""
        outputs, logits = [], []
        for stages in self.rings:
            hidden = mx.array(np.array(ids, np.int32))
            for stage in stages:
                hidden = stage.run(step, hidden)
            outputs.append(np.array(hidden))
            logits.append(np.array(stages[-1].logits(step, hidden)))
        for row, count in enumerate(step.counts):
            np.testing.assert_allclose(outputs[1][row, :count], outputs[0][row, :count], atol=TOLERANCE)
        np.testing.assert_allclose(logits[1], logits[0], atol=TOLERANCE, rtol=TOLERANCE)
        assert (logits[1].argmax(-1) == logits[0].argmax(-1)).all()


def make_ids(step: StageStep, rng: random.Random) -> list[list[int]]:
    return [[rng.randrange(VOCAB_SIZE) for _ in range(step.num_tokens)] for _ in step.slots]


@pytest.mark.parametrize("variant", DENSE)
def test_numpy_is_really_used(variant: str) -> None:
    """Every type on the list is run by NumPy, and by MLX unless it is asked for."""
    folder = shared_checkpoint(variant)
    assert isinstance(load(folder, "auto"), DenseLayers)
    assert not isinstance(load(folder, None), DenseLayers)


@pytest.mark.parametrize(
    ("variant", "products"),
    [
        *itertools.product(DENSE, ["blas"]),
        *(pytest.param(name, "kernels", marks=needs_kernels) for name in DENSE),
        *itertools.product(MIXTURES, ["auto"]),
    ],
)
def test_chunks_decode_holes_and_gathered_rows(variant: str, products: str) -> None:
    """Prompts in chunks, ragged rows together, decode with holes and out of order slots: all equal."""
    rng = random.Random(1)
    twins = Twins(shared_checkpoint(variant), (0, 1, NUM_LAYERS), products)
    for rows in (
        {0: (0, 7)},
        {0: (7, 70)},
        {1: (0, 5), 2: (0, 9)},
        {0: (77, 1), 1: (5, 1), 2: (9, 1)},
        {0: (78, 1), 1: (0, 0), 2: (10, 1)},
        {5: (0, 3)},
        {5: (3, 1), 1: (6, 1)},
        {2: (11, 1)},
        {0: (79, 600)},
        {0: (679, 1), 1: (7, 1)},
        {0: (680, 3), 1: (0, 0), 2: (12, 1)},
    ):
        step = make_step(rows)
        twins.step(step, make_ids(step, rng))


@pytest.mark.parametrize("variant", ["llama", "qwen3"])
def test_shared_beginnings_are_copied(variant: str) -> None:
    """A row that copies another row's first tokens, of its own table or another, goes on from there."""
    rng = random.Random(2)
    twins = Twins(shared_checkpoint(variant))
    first = make_step({0: (0, 80)})
    twins.step(first, make_ids(first, rng))
    for step in (
        make_step({1: (70, 4)}, copies=(PrefixCopy(0, 0, 1, 70),)),
        make_step({3: (33, 2)}, table=1, copies=(PrefixCopy(0, 1, 3, 33),)),
        make_step({0: (80, 1), 1: (74, 1)}),
        make_step({3: (35, 1)}, table=1),
    ):
        twins.step(step, make_ids(step, rng))


def test_a_reset_table_starts_anew() -> None:
    """After a reset nothing of the old rows is seen, and their memory is gone."""
    rng = random.Random(3)
    twins = Twins(shared_checkpoint("llama"))
    big = make_step({0: (0, 300)})
    twins.step(big, make_ids(big, rng))
    held = twins.rings[1][0].kv_num_bytes
    small = StageStep(0, slots=(0,), offsets=(0,), counts=(4,), num_tokens=4, resizes=(Resize(0, 0, 0),))
    twins.step(small, make_ids(small, rng))
    assert twins.rings[1][0].kv_num_bytes < held / 4


def test_both_kinds_of_table_take_the_same_memory() -> None:
    """Rank 0's budget counts tokens by one rule, whatever runs the layers."""
    sizes = []
    for products in (None, "auto"):
        runner = load(shared_checkpoint("qwen2"), products)
        stage = Stage(runner)
        stage.measure_kv()
        sizes.append(stage.kv_bytes_per_token)
    assert sizes[0] == sizes[1] > 0


@pytest.mark.parametrize("variant", MIXTURES)
def test_of_a_mixture_the_experts_alone_leave_mlx(variant: str) -> None:
    """Every one of them, and nothing without being asked."""
    sizes = set()
    for products, kind in (("auto", Experts), (None, switch_layers.SwitchGLU)):
        runner = load(shared_checkpoint(variant), products)
        assert not isinstance(runner, DenseLayers)
        assert runner.is_async == (products is None)
        kinds = [type(layer.mlp.switch_mlp) for layer in runner.model.inner.layers if "gate" in layer.mlp]
        assert set(kinds) == {kind}
        sizes.add(runner.model.weights_bytes)
    assert len(sizes) == 1


@pytest.mark.parametrize(("bits", "mode"), [(4, "affine"), (6, "affine"), (8, "affine"), (4, "mxfp4")])
@pytest.mark.parametrize("num_tokens", [5, 40])
def test_packed_experts_give_the_numbers_of_mlx(bits: int, mode: str, num_tokens: int) -> None:
    """Those of 4 and 8 bits are unpacked for a chunk; MLX runs short steps, and every other packing."""
    mx.random.seed(bits)
    layer = nn.Module()
    layer.mlp = switch_layers.SwitchGLU(64, 96, 8)
    nn.quantize(layer, group_size=32, bits=bits, mode=mode)
    mx.eval(layer.parameters())
    mixture = layer.mlp
    assert place_experts(layer) == isinstance(layer.mlp, Experts) == (mode == "affine" and bits != 6)
    x = mx.random.normal((2, num_tokens, 64))
    indices = mx.random.randint(0, 8, (2, num_tokens, 3)).astype(mx.uint32)
    assert mx.allclose(layer.mlp(x, indices), mixture(x, indices), atol=1e-5)


def test_packed_and_half_precision_weights_stay_with_mlx() -> None:
    """Only plain float32 products are taken over."""
    folder = shared_checkpoint("llama-4bit-tied")
    assert not isinstance(load(folder, "auto"), DenseLayers)
    unpacked = load(folder, "auto", dequantize=True)
    assert isinstance(unpacked, DenseLayers)
    half = load(shared_checkpoint("llama"), "auto", dtype="bfloat16")
    assert not isinstance(half, DenseLayers)


@pytest.mark.parametrize("width", [7, 24, MAX_WIDTH + BLOCK_WIDTH + 5])
@pytest.mark.parametrize("num_rows", [1, 2, 5])
def test_products_of_the_blas(num_rows: int, width: int) -> None:
    """One row takes another routine than several, wide ones go in blocks: it is MLX's product."""
    module = nn.Linear(24, width)
    mx.eval(module.parameters())
    x = mx.random.normal((num_rows, 24), key=mx.random.key(num_rows))
    linear = Linear(on_blas(Blas(), np.array(module["weight"])), width, np.array(module["bias"]))
    np.testing.assert_allclose(linear(np.array(x)), np.array(module(x)), atol=1e-5)


@needs_kernels
@pytest.mark.parametrize("lanes", MAX_BLOCK_ROWS)
@pytest.mark.parametrize(("width", "depth"), [(7, 36), (96, 64), (1000, 72)])
def test_packed_products(width: int, depth: int, lanes: int) -> None:
    """Any number of rows, also more than one block of them: NumPy's product, and each row the same in all.

    Also on more threads: what an answer is does not depend on who else is there.
    """
    rng = np.random.default_rng(width)
    weight = rng.standard_normal((width, depth), np.float32)
    x = rng.standard_normal((259, depth), np.float32)
    if lanes > count_lanes():
        pytest.skip("no vectors of this length here")
    kernels = Kernels(lanes)
    assert kernels.can_pack(depth)
    packed = kernels.pack(weight)
    whole = packed(x)
    np.testing.assert_allclose(whole, x @ weight.T, atol=1e-4)
    for num_threads in (1, 2, 3, 1):
        kernels.use_threads(num_threads)
        for num_rows in (1, 2, 3, 4, 5, 6, 7, 13, 16, 19, 48, 49, 128, 129, 259):
            np.testing.assert_array_equal(packed(x[:num_rows]), whole[:num_rows])


@needs_kernels
@pytest.mark.parametrize("variant", ["llama", "llama-tied"])
def test_packed_weights_leave_their_modules(tmp_path: Path, variant: str) -> None:
    """A weight is in memory once; only an embedding that is looked up in stays beside the head it is."""
    folder = make_checkpoint(tmp_path, variant, hidden_size=256, intermediate_size=512, vocab_size=1024)
    plain = load(folder, "blas")
    packed = load(folder, "kernels")
    assert "weight" not in packed.model.inner.layers[0].mlp.gate_proj
    assert "weight" in packed.model.inner.embed_tokens
    assert packed.model.weights_bytes == pytest.approx(plain.model.weights_bytes, rel=0.05)


def test_without_a_compiler_the_blas_multiplies(monkeypatch: pytest.MonkeyPatch) -> None:
    """llvmlite that is missing is told with what mends it, and so is a processor that has no kernels."""
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(NoPackedProducts, match=r"CPU_PRODUCTS=kernels.*x86-64"):
        choose_kernels("kernels")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setitem(sys.modules, "llvmlite.binding", None)
    with pytest.raises(NoPackedProducts, match=r"CPU_PRODUCTS=kernels.*pip install llvmlite"):
        choose_kernels("kernels")
    assert choose_kernels("auto") is None


def test_helping_threads_sleep_between_steps() -> None:
    """A step that is alone takes more threads, and gives the cores back with its last product."""
    runner = load(shared_checkpoint("llama"), "auto")
    if runner.use_threads is None:
        pytest.skip("nothing packs weights here")
    asked: list[int] = []
    use_threads = runner.use_threads

    def note_and_use(num_threads: int) -> None:
        asked.append(num_threads)
        use_threads(num_threads)

    runner.use_threads = note_and_use
    stage = Stage(runner, ProductThreads(1, 2))
    assert stage.thread_gain == 2
    for is_alone in (False, True):
        step = dataclasses.replace(make_step({0: (0, 3)}), is_alone=is_alone)
        hidden = stage.run(step, mx.array([[1, 2, 3]]))
        stage.logits(step, hidden)
    assert asked == [1, 1, 2, 1]
    stage.run(step, mx.array([[1, 2, 3]]))
    stage.rest()  # nobody wants the logits any more
    assert asked == [1, 1, 2, 1, 2, 1]
