"""A table's rows hold exactly their own tokens, whoever joins or leaves."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import pytest

from distributed.backends.kv_cache import KVTable
from distributed.planning.kv_sizes import padded_tokens
from distributed.planning.step import Resize, StageStep
from tests.services.stages import make_step

H, D = 2, 4


class Mirror:
    """Writes the same numbers into a table and into plain lists, and compares."""

    def __init__(self) -> None:
        self.table = KVTable(1)
        self.rows: dict[int, list[float]] = {}
        self._next = 0.0

    def write(self, step: StageStep) -> None:
        values = []
        for slot, offset, count in zip(step.slots, step.offsets, step.counts, strict=True):
            new = [self._next + i for i in range(step.num_tokens)]
            self._next += step.num_tokens
            values.append(new)
            if count:
                self.rows[slot] = self.rows.get(slot, [])[:offset] + new[:count]
        keys = mx.broadcast_to(mx.array(values)[:, None, :, None], (step.num_rows, H, step.num_tokens, D))
        layer = self.table.begin(step)[0]
        fetched_keys, fetched_values = layer.update_and_fetch(keys, -keys)
        mx.eval(fetched_keys, fetched_values)
        for i, (slot, count) in enumerate(zip(step.slots, step.counts, strict=True)):
            if count:
                row = self.rows[slot]
                assert fetched_keys[i, 0, : len(row), 0].tolist() == row
                assert fetched_values[i, 1, : len(row), 3].tolist() == [-value for value in row]


def test_rows_join_decode_and_leave_without_touching_each_other() -> None:
    """Prefill, decode, holes, gathered rows, growth, reuse of a slot: every row reads back its own tokens."""
    mirror = Mirror()
    mirror.write(make_step({0: (0, 5)}))
    mirror.write(make_step({1: (0, 70)}))
    mirror.write(make_step({2: (0, 3), 3: (0, 2)}))
    mirror.write(make_step({0: (5, 1), 1: (70, 1), 2: (3, 1), 3: (2, 1)}))
    mirror.write(make_step({0: (6, 1), 1: (0, 0), 2: (4, 1), 3: (3, 1)}))
    mirror.write(make_step({0: (7, 1), 3: (4, 1)}))
    mirror.write(make_step({1: (0, 4)}))
    mirror.write(make_step({9: (0, 600)}))
    mirror.write(make_step({0: (8, 1), 1: (4, 1), 2: (5, 1), 3: (5, 1)}))
    assert mirror.rows[1][:4] != mirror.rows[9][:4]


def test_a_prefix_is_copied_between_rows_and_tables() -> None:
    """The copy has its source's first tokens, the source stays; the table need not have the row yet."""
    mirror, other = Mirror(), Mirror()
    mirror.write(make_step({0: (0, 20)}))
    mirror.table.copy_prefix(mirror.table, 0, 5, 12)
    mirror.rows[5] = mirror.rows[0][:12]
    mirror.write(make_step({5: (12, 3)}))
    mirror.write(make_step({0: (20, 1), 5: (15, 1)}))
    other.table.copy_prefix(mirror.table, 5, 1, 10)
    other.rows[1] = mirror.rows[5][:10]
    other.write(make_step({1: (10, 70)}))


def test_a_hole_is_never_written() -> None:
    """Kept tokens of a finished sequence survive steps of their neighbours."""
    mirror = Mirror()
    for slot in range(4):
        mirror.write(make_step({slot: (0, 8)}))
    kept = list(mirror.rows[1])
    for offset in range(8, 12):
        mirror.write(make_step({0: (offset, 1), 1: (0, 0), 2: (offset, 1), 3: (offset, 1)}))
    mirror.write(make_step({1: (8, 1)}))
    assert mirror.rows[1][:8] == kept


@pytest.mark.parametrize(
    ("step", "wanted"),
    [
        (make_step({0: (7, 1)}), None),
        (make_step({0: (7, 4)}), "causal"),
        (make_step({0: (0, 4), 1: (0, 3)}), "causal"),
        (make_step({0: (7, 1), 1: (7, 1)}), None),
    ],
)
def test_level_rows_need_no_mask_array(step: StageStep, wanted: str | None) -> None:
    """Where all rows are equally long, no quadratic or per-row mask is made."""
    assert KVTable(1).begin(step)[0].make_mask(step.num_tokens) == wanted


def test_uneven_rows_see_their_own_past_only() -> None:
    """The mask of a row ends at its own last token."""
    step = make_step({0: (2, 1), 1: (4, 1)})
    mask = KVTable(1).begin(step)[0].make_mask(1)
    assert mask[:, 0, 0].tolist() == [[True, True, True, False, False], [True] * 5]


WINDOW = 4


@pytest.mark.parametrize(
    "step",
    [
        make_step({0: (9, 1)}),
        make_step({0: (1, 1)}),
        make_step({0: (9, 7)}),
        make_step({0: (0, 3)}),
        make_step({0: (9, 1), 1: (9, 1)}),
        make_step({0: (9, 1), 1: (2, 1), 3: (6, 1)}),
        make_step({0: (9, 1), 1: (0, 0), 2: (12, 1)}),
        make_step({0: (9, 5), 1: (2, 7), 2: (3, 1)}),
    ],
)
def test_layers_with_a_window_read_what_their_rows_see(step: StageStep) -> None:
    """Each new token sees WINDOW tokens with itself; holes and padding see some; nothing before is read."""
    table = KVTable(2, windows=(None, WINDOW))
    length = step.num_kv_tokens
    keys = mx.broadcast_to(mx.arange(length)[None, None, :, None], (4, H, length, D)).astype(mx.float32)
    for layer in table.begin(make_step(dict.fromkeys(range(4), (0, length)))):
        layer.update_and_fetch(keys, -keys)
    whole, seen = table.begin(step)
    first_keys = keys[: step.num_rows, :, -step.num_tokens :]
    first_keys = mx.stack(
        [
            mx.broadcast_to(mx.arange(offset, offset + step.num_tokens)[None, :, None], first_keys.shape[1:])
            for offset in step.offsets
        ]
    ).astype(mx.float32)
    assert whole.update_and_fetch(first_keys, -first_keys)[0].shape[2] == length
    read = seen.update_and_fetch(first_keys, -first_keys)[0][0, 0, :, 0].tolist()
    assert read[0] == max(0, min(o for o, n in zip(step.offsets, step.counts, strict=True) if n) + 1 - WINDOW)
    mask = whole.make_mask(step.num_tokens, window_size=WINDOW)
    if length <= WINDOW:
        assert mask in (None, "causal")
        return
    if mask is None:
        mask = mx.ones((step.num_rows, 1, 1, len(read)), mx.bool_)
    for row, (offset, count) in enumerate(zip(step.offsets, step.counts, strict=True)):
        for column in range(step.num_tokens):
            got = [key for key, is_seen in zip(read, mask[row, 0, column].tolist(), strict=True) if is_seen]
            if column < count:
                assert got == list(range(max(0, offset + column + 1 - WINDOW), offset + column + 1))
            assert got


def test_memory_is_what_the_budget_counts() -> None:
    """Rank 0's padded size is the stages' real size."""
    mirror = Mirror()
    mirror.write(make_step({4: (0, 130)}))
    bytes_per_token = 2 * H * D * 4
    assert mirror.table.num_bytes == padded_tokens(5, 130) * bytes_per_token
    mirror.table.resize(Resize(0, 0, 0))
    assert mirror.table.num_bytes == 0


def peak_of(change: Callable[[], None]) -> int:
    """The most bytes that arrays took at once during a change, beside what there was before."""
    mx.clear_cache()  # a buffer of an earlier test, taken again, may be larger than what is asked for
    before = int(mx.get_active_memory())
    mx.reset_peak_memory()
    change()
    return int(mx.get_peak_memory()) - before


def test_one_layer_at_a_time_is_in_memory_twice() -> None:
    """While a table grows, shrinks to some of its rows, or a long prefix is copied."""
    num_layers, table = 8, KVTable(8)
    keys = mx.ones((4, H, 1000, D))
    for layer in table.begin(make_step(dict.fromkeys(range(4), (0, 1000)))):
        layer.update_and_fetch(keys, -keys)
    mx.eval([(layer.keys, layer.values) for layer in table.layers])
    token = 2 * H * D * 4  # bytes of one layer
    slack = 64 * 1024
    assert table.num_bytes == 4 * 1024 * token * num_layers
    assert peak_of(lambda: table.copy_prefix(table, 0, 1, 1000)) <= 4 * 1000 * token + slack
    growth = 4 * 512 * token * num_layers
    assert peak_of(lambda: table.resize(Resize(0, 4, 1536))) <= growth + 4 * 1024 * token + slack
    taken = 2 * 1536 * token  # of the rows that stay, before they are in their new place
    assert peak_of(lambda: table.resize(Resize(0, 2, 1024, (3, 1)))) <= 2 * 1024 * token + taken + slack
    assert table.num_bytes == 2 * 1024 * token * num_layers


def test_a_step_that_was_built_ahead_is_taken_back() -> None:
    """The arrays are those of before, though what was built writes into the same ones."""
    table, keys = KVTable(1), mx.ones((1, H, 1, D))
    (layer,) = table.begin(make_step({0: (0, 1)}))
    layer.update_and_fetch(keys, keys)
    begun, take_back = table.begin_ahead(make_step({0: (1, 1)}))
    begun[0].update_and_fetch(5 * keys, 5 * keys)
    take_back()
    assert layer.keys is not None
    assert layer.keys[0, 0, :3, 0].tolist() == [1, 0, 0]
