"""A table in NumPy arrays takes the memory and the time of what was written, not of what might be."""

from __future__ import annotations

import numpy as np
import psutil

from distributed.backends.cpu.kv_table import CpuKVTable
from distributed.planning.step import StageStep

NUM_HEADS, HEAD_WIDTH = 3, 64
TOKEN_BYTES = 2 * 4 * NUM_HEADS * HEAD_WIDTH  # keys and values of one token


def write(table: CpuKVTable, slots: tuple[int, ...], offset: int, count: int, first: float) -> None:
    """Write `count` tokens that are told apart: first, first + 1 and so on; values are their negatives."""
    step = StageStep(
        table=0, slots=slots, offsets=(offset,) * len(slots), counts=(count,) * len(slots), num_tokens=count
    )
    tokens = np.arange(first, first + count, dtype=np.float32)[None, :, None, None]
    keys = np.broadcast_to(tokens, (len(slots), count, NUM_HEADS, HEAD_WIDTH))
    view, (layer,) = table.begin(step)
    layer.write(view, keys, -keys)


def read(table: CpuKVTable, slot: int, num_tokens: int) -> list[float]:
    (layer,) = table.layers
    assert np.array_equal(layer.values[slot], -layer.keys[slot])
    return [float(value) for value in layer.keys[slot, -1, :num_tokens, -1]]


def test_one_long_row_costs_no_memory_for_its_neighbours() -> None:
    """32 rows of 60 tokens, then one of 4,000: a table that could hold 32 of those takes room for one."""
    table = CpuKVTable(1)
    write(table, tuple(range(32)), 0, 60, 0.0)
    before = psutil.Process().memory_info().rss
    write(table, (7,), 0, 4000, 100.0)
    grown = psutil.Process().memory_info().rss - before
    assert table.num_bytes >= 32 * 4000 * TOKEN_BYTES
    assert grown < 8 * 4000 * TOKEN_BYTES  # the row, the step's own arrays, the pages that rows share
    assert read(table, 7, 4000) == [100.0 + i for i in range(4000)]
    assert read(table, 8, 60) == list(range(60))


def test_growth_keeps_what_the_present_rows_wrote_and_no_more() -> None:
    """A slot that a shorter sequence took over is copied as far as that goes; behind it are zeros again."""
    table = CpuKVTable(1)
    write(table, (0, 1), 0, 200, 1.0)
    write(table, (1,), 0, 5, 1000.0)
    table.copy_prefix(table, 0, 2, 20)
    write(table, (0,), 200, 900, 201.0)
    assert read(table, 0, 1100) == [1.0 + i for i in range(1100)]
    assert read(table, 1, 7) == [1000.0, 1001.0, 1002.0, 1003.0, 1004.0, 0.0, 0.0]
    assert read(table, 2, 21) == [*(1.0 + i for i in range(20)), 0.0]
