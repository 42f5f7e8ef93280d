"""Simulated stages: timed waits in the place of layers; everything else of the ring is real.

`distributed/models/simulated.py` makes their model folder. `SimulatedRunner` waits where layers would
compute, asleep until a deadline of the monotonic clock, so that eight ranks take two cores no more than eight
machines would.

Its answers are wrong on purpose and right in one sense: a token is a function of all ids before it, computed
through the hidden states and through every stage's KV, so a test sees at once when a slot, an offset, a
prefix copy or a stage was mixed up.

    hidden[0] = id of the token          hidden[1] = sum over the layers so far of S(position), modulo M
    S(position) = sum over positions p up to here of (id(p) + 1) x (40503 p + 12289), modulo M: a stage's KV
    next id = first made-up id + hidden[1] of the last layer modulo the number of made-up ids
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from config.simulated import SimulatedModel
from distributed.backends.backend import StageRunner
from distributed.backends.cpu.backend import CpuBackend
from distributed.models.simulated import CONFIG_KEY, first_made_up_id
from distributed.models.stage_model import StageModel
from distributed.planning.checkpoint import read_config
from distributed.planning.kv_sizes import grown
from distributed.planning.step import Clear, Resize, StageStep

MODULUS = 1_000_003  # its sums are exact in float32

Int64Array = NDArray[np.int64]


def marks_of(ids: Int64Array, positions: Int64Array) -> Int64Array:
    return (ids + 1) * (positions * 40503 + 12289) % MODULUS


def next_id(model: SimulatedModel, digest: Any) -> Any:
    # The square, as two digests whose difference stays the same would give the same ids for ever otherwise.
    first = first_made_up_id(model.vocab)
    return first + digest * digest % MODULUS % (model.vocab - first)


class SimulatedBackend(CpuBackend):
    """One of the machines that a simulated model describes."""

    def __init__(self, folder: Path, rank: int) -> None:
        super().__init__()
        self._simulated, self._rank = SimulatedModel.from_name(read_config(folder)[CONFIG_KEY]), rank

    def load(self, folder: Path, layers: range, **options: Any) -> SimulatedRunner:
        return SimulatedRunner(
            self._simulated,
            self._rank,
            layers,
            is_first=options["is_first"],
            is_last=options["is_last"],
        )


class SimulatedTable:
    """The KV of one table: one number for each token of each row."""

    def __init__(self) -> None:
        self.values = np.zeros((0, 0), np.int64)  # (rows, tokens)

    @property
    def num_bytes(self) -> int:
        return self.values.nbytes

    def begin(self, step: StageStep) -> tuple[StageStep, Int64Array]:
        """Return what `SimulatedRunner.forward` takes beside its input."""
        self._make_room(max(step.slots) + 1, step.num_kv_tokens)
        return step, self.values

    def resize(self, order: Resize) -> None:
        """Take another size."""
        kept = (self.values[list(order.slots)] if order.slots else self.values)[
            : order.num_rows, : order.num_tokens
        ]
        self.values = np.zeros((order.num_rows, order.num_tokens), np.int64)
        self.values[: kept.shape[0], : kept.shape[1]] = kept

    def clear(self, order: Clear) -> None:
        """Set some of a row's tokens to zero."""
        self.values[order.slot : order.slot + 1, order.start : order.end] = 0

    def copy_prefix(self, source: SimulatedTable, from_slot: int, to_slot: int, num_tokens: int) -> None:
        """Copy the first tokens of a row of `source`, which may be this table, into a row of this one."""
        self._make_room(to_slot + 1, num_tokens)
        self.values[to_slot, :num_tokens] = source.values[from_slot, :num_tokens]

    def _make_room(self, num_rows: int, num_tokens: int) -> None:
        shape = grown((self.values.shape[0], self.values.shape[1]), num_rows, num_tokens)
        if self.values.shape != shape:
            self.resize(Resize(0, *shape))


class SimulatedRunner(StageRunner):
    """Waits as long as its layers would take."""

    is_async = True

    def __init__(
        self, simulated: SimulatedModel, rank: int, layers: range, *, is_first: bool, is_last: bool
    ) -> None:
        super().__init__(
            StageModel(
                inner=None,
                head=None,
                layers=layers,
                is_first=is_first,
                is_last=is_last,
                hidden_size=simulated.hidden,
                vocab_size=simulated.vocab,
                dtype=mx.float32,
                weights_bytes=4 * 64 * len(layers),
            )
        )
        self._simulated, self._rank = simulated, rank
        self._deadline_ns = 0

    def make_table(self) -> SimulatedTable:
        return SimulatedTable()

    def forward(self, x: mx.array, begun: tuple[StageStep, Int64Array]) -> mx.array:
        """Work the answer out; `wait` then takes the layers' time."""
        step, table = begun
        num_layers = len(self.model.layers)
        cost_us = self._simulated.stage_us(
            rank=self._rank, num_layers=num_layers, num_rows=step.num_rows, num_tokens=step.num_tokens
        )
        self._deadline_ns = time.monotonic_ns() + int(cost_us * 1000)
        values = np.asarray(x)
        ids = (values if self.model.is_first else values[..., 0]).astype(np.int64)
        digests = np.zeros_like(ids) if self.model.is_first else values[..., 1].astype(np.int64)
        hidden = np.zeros((*ids.shape, self._simulated.hidden), np.float32)
        hidden[..., 0] = ids
        hidden[..., 1] = (digests + num_layers * _write_kv(table, step, ids)) % MODULUS
        return mx.array(hidden)

    def wait(self, *arrays: mx.array) -> None:
        super().wait(*arrays)
        sleep_until(self._deadline_ns)

    def logits(self, hidden: mx.array, rows: Sequence[int], columns: Sequence[int]) -> mx.array:
        """Return logits (W, V) of which the next id's is far above all others."""
        deadline_ns = time.monotonic_ns() + int(self._simulated.draw_us(len(rows)) * 1000)
        logits = np.zeros((len(rows), self._simulated.vocab), np.float32)
        digests = np.asarray(hidden)[list(rows), list(columns), 1].astype(np.int64)
        logits[np.arange(len(rows)), next_id(self._simulated, digests)] = 100.0
        output = mx.array(logits)
        mx.eval(output)
        sleep_until(deadline_ns)
        return output


def _write_kv(table: Int64Array, step: StageStep, ids: Int64Array) -> Int64Array:
    """Bring this step's tokens into the table; returns the sum up to each of them, (B, T)."""
    slots, offsets = np.array(step.slots)[:, None], np.array(step.offsets)[:, None]
    positions = offsets + np.arange(step.num_tokens)  # (B, T)
    before = np.where(offsets > 0, table[slots, np.maximum(offsets - 1, 0)], 0)
    sums = (before + np.cumsum(marks_of(ids, positions), axis=1)) % MODULUS
    is_real = np.arange(step.num_tokens) < np.array(step.counts)[:, None]
    rows, columns = np.nonzero(is_real)
    table[slots[rows, 0], positions[rows, columns]] = sums[rows, columns]
    written: Int64Array = sums
    return written


def sleep_until(deadline_ns: int) -> None:
    """Sleep until a moment of the monotonic clock; a signal's handler may run meanwhile."""
    while (left_ns := deadline_ns - time.monotonic_ns()) > 0:
        time.sleep(left_ns / 1e9)
