"""Compiled norms, rotations, gates and attention give what NumPy's give, for any rows, slots and lengths."""

from __future__ import annotations

import numpy as np
import pytest

from distributed.backends.cpu.compiling import CannotCompile, Float32Array
from distributed.backends.cpu.kv_table import CpuKVTable
from distributed.backends.cpu.layer_kernels import LayerKernels
from distributed.backends.cpu.operations import Operations
from distributed.backends.cpu.rotary import Rotation
from distributed.planning.step import StageStep

pytest.importorskip("llvmlite")
NUMPY = Operations()
SHAPES = [(1, 16), (3, 64), (7, 128), (12, 32)]  # query heads a key head, head width
NUM_KV_HEADS = 2


def compiled(group: int, head_dim: int) -> LayerKernels:
    try:
        return LayerKernels(group, head_dim)
    except CannotCompile as reason:
        pytest.skip(str(reason))


def random_array(*shape: int, seed: int = 0) -> Float32Array:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@pytest.mark.parametrize(("group", "head_dim"), SHAPES)
@pytest.mark.parametrize("lengths", [(1,), (5, 8, 33), (700, 1, 64, 63, 65)])
def test_attention_of_new_tokens(group: int, head_dim: int, lengths: tuple[int, ...]) -> None:
    """Rows of unlike length in slots out of order; each row alone gives the same to the last bit."""
    operations, table = compiled(group, head_dim), CpuKVTable(1)
    slots = tuple(reversed(range(1, len(lengths) + 1)))
    for slot, length in zip(slots, lengths, strict=True):
        if length > 1:
            keys, values = (random_array(1, length - 1, NUM_KV_HEADS, head_dim, seed=slot) for _ in range(2))
            view, (kv,) = table.begin(StageStep(0, (slot,), (0,), (length - 1,), length - 1))
            kv.write(view, keys, values)
    step = StageStep(0, slots, tuple(length - 1 for length in lengths), (1,) * len(lengths), 1)
    view, (kv,) = table.begin(step)
    kv.write(view, *(random_array(len(slots), 1, NUM_KV_HEADS, head_dim, seed=seed) for seed in (7, 8)))
    queries = random_array(len(slots), NUM_KV_HEADS * group, head_dim, seed=9) * 3 / np.sqrt(head_dim)
    queries = queries.astype(np.float32)
    whole = operations.attend_new(queries, kv, view)
    np.testing.assert_allclose(whole, NUMPY.attend_new(queries, kv, view), atol=2e-5)
    for row, (slot, length) in enumerate(zip(slots, lengths, strict=True)):
        alone, _ = table.begin(StageStep(0, (slot,), (length - 1,), (1,), 1))
        np.testing.assert_array_equal(operations.attend_new(queries[row : row + 1], kv, alone)[0], whole[row])


@pytest.mark.parametrize("num_rows", [1, 7])
def test_norm_rotation_and_gate(num_rows: int) -> None:
    """Also on columns of a larger array, as joined products give them, and far out on the gate's tails."""
    operations = compiled(3, 64)
    x, weight = random_array(num_rows, 96), random_array(96, seed=1)
    np.testing.assert_allclose(
        operations.norm(x, weight, 1e-5), NUMPY.norm(x, weight, 1e-5), rtol=1e-5, atol=1e-6
    )
    joined = random_array(num_rows, 6 * 64 + 32, seed=2)
    heads = joined[:, 32:].reshape(num_rows, 6, 64)
    assert np.shares_memory(heads, joined)
    cos, sin = (random_array(num_rows, 1, 32, seed=seed) for seed in (3, 4))
    rotation = Rotation(cos, sin, query_factors=random_array(num_rows, seed=5))
    for scales in (False, True):
        np.testing.assert_allclose(
            operations.rotate(heads, rotation, scales=scales),
            NUMPY.rotate(heads, rotation, scales=scales),
            atol=1e-5,
        )
    both = random_array(num_rows, 2 * 48, seed=6) * 5
    both[0, :8] = (-1000, -100, -88, -20, 20, 88, 100, 1000)
    gate, up = both[:, :48], both[:, 48:]
    np.testing.assert_allclose(operations.gate(gate, up), NUMPY.gate(gate, up), rtol=1e-5, atol=1e-6)


def test_what_does_not_fit_is_left_to_numpy() -> None:
    """Odd widths, and heads that no register holds."""
    for group, head_dim, width in ((3, 24, 576), (3, 64, 577), (32, 64, 576)):
        with pytest.raises(CannotCompile, match="do not fit"):
            LayerKernels(group, head_dim, (width,))
