"""A stage: the layers one rank owns, with the KV of every table.

Knows how to run one microbatch through its layers; nothing of requests, sampling or sockets. The same code
runs on every rank; only the first has the embedding and only the last the norm and the head."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
import numpy as np

from distributed.backends.backend import StageRunner
from distributed.backends.cpu.threads import ProductThreads
from distributed.planning.kv_sizes import padded_tokens
from distributed.planning.step import StageStep

# What such a step leaves for reuse (scores that grow with the context) fits no later one.
LONG_STEP_TOKENS = 256


@dataclass(frozen=True)
class _Ahead:
    """A step that was built before its frame arrived."""

    step: StageStep
    inputs: mx.array
    hidden: mx.array
    take_back: Callable[[], None]


class Stage:
    """Runs microbatches in the order of their frames; a KV table exists from its first step on."""

    def __init__(self, runner: StageRunner, threads: ProductThreads | None = None) -> None:
        """Args: threads: of products, where the runner can change their number; None: one."""
        self.runner, self.model = runner, runner.model
        self._threads = threads or ProductThreads(1, 1)
        self._use_threads = runner.use_threads or (lambda num_threads: None)
        # How many times as many threads its products have while no other stage has work.
        self.thread_gain = self._threads.gain if runner.use_threads is not None else 1.0
        self._tables: dict[int, Any] = {}
        self._ahead: _Ahead | None = None
        self.kv_bytes_per_token = self.state_bytes_per_row = 0

    @property
    def kv_num_bytes(self) -> int:
        return sum(table.num_bytes for table in self._tables.values())

    def run(self, step: StageStep, inputs: mx.array) -> mx.array:
        """Run the layers and wait for the result; see `launch`."""
        hidden = self.launch(step, inputs)
        self.finish(step, hidden)
        return hidden

    def launch(self, step: StageStep, inputs: mx.array) -> mx.array:
        """Start the layers.

        Args:
            inputs: token ids (B, T) int32 on the first stage, hidden states (B, T, D) on the others.

        Returns:
            Hidden states (B, T, D), after the final norm on the last stage; to be waited for by `finish`.
        """
        ahead = self._take_ahead(step, inputs)
        if ahead is not None:
            self.runner.submit(ahead)
            return ahead
        self._use_threads(self._threads.num_alone if step.is_alone else self._threads.num_shared)
        for resize in step.resizes:
            self._table(resize.table).resize(resize)
        if step.resizes:
            self.runner.drop_cache()
        table = self._table(step.table)
        for clear in step.clears:
            table.clear(clear)
        for copy in step.copies:
            table.copy_prefix(self._table(copy.from_table), copy.from_slot, copy.to_slot, copy.num_tokens)
        hidden = self.runner.forward(inputs, table.begin(step))
        self.runner.submit(hidden)
        return hidden

    def finish(self, step: StageStep, *arrays: mx.array) -> None:
        """Wait for a step's hidden states, or for what was made of them."""
        self.runner.wait(*arrays)
        if step.num_rows * step.num_tokens >= LONG_STEP_TOKENS:
            self.runner.drop_cache()
        if not (step.wants_logits and self.model.is_last):
            self.rest()

    def build_ahead(self, step: StageStep, expect: Callable[[int, int], mx.array | None]) -> None:
        """Build a step before its frame arrives, while no other can; `launch` uses it if it is the next one.

        Args:
            expect: from rows and tokens to the hidden states that will arrive, as `Ring.expect_hidden`.
        """
        has_orders = bool(step.resizes or step.clears or step.copies)
        if self._ahead is not None or has_orders or step.table not in self._tables:
            return
        if step.num_tokens > 1 or not step.is_alone:  # others are in flight: there will be work at once
            return
        ids = mx.array(np.zeros((step.num_rows, 1), np.int32)) if self.model.is_first else None
        inputs = expect(step.num_rows, 1) if ids is None else ids
        if inputs is not None:
            built = self.runner.build_ahead(inputs, self._tables[step.table], step)
            self._ahead = _Ahead(step, inputs, *built)

    def _take_ahead(self, step: StageStep, inputs: mx.array) -> mx.array | None:
        """Return the hidden states of the step that was built ahead, if it is this one; else take it back."""
        ahead, self._ahead = self._ahead, None
        if ahead is None:
            return None
        is_this = replace(step, is_alone=True, wants_logits=ahead.step.wants_logits) == ahead.step
        if is_this and self.model.is_first:
            # Nothing has read the array yet that the graph begins with.
            np.asarray(ahead.inputs)[:] = np.asarray(inputs)
        elif not is_this or inputs is not ahead.inputs:
            ahead.take_back()
            return None
        return ahead.hidden

    def logits(
        self, step: StageStep, hidden: mx.array, wanted: Items[tuple[int, int]] | None = None
    ) -> mx.array:
        """Return logits (W, V); lazy.

        Args:
            hidden: what `launch` returned for the step.
            wanted: (row, column) of each token whose logits are asked for; None: each real row's last.
        """
        if wanted is None:
            wanted = [(row, count - 1) for row, count in enumerate(step.counts) if count]
        rows, columns = zip(*wanted, strict=True)
        logits = self.runner.logits(hidden, rows, columns)
        self.rest()
        return logits

    def _table(self, number: int) -> Any:
        if number not in self._tables:
            self._tables[number] = self.runner.make_table()
        return self._tables[number]

    def rest(self) -> None:
        """Leave the other cores to the stage that works next: helping threads spin between products.

        To be called where a step that could have given logits was not asked for them.
        """
        self._use_threads(1)

    def measure_kv(self) -> None:
        """Run one token, to learn what its KV takes and to compile what is compiled on first use."""
        step = StageStep(0, slots=(0,), offsets=(0,), counts=(1,), num_tokens=1)
        first, model = self.model.is_first, self.model
        inputs = mx.zeros((1, 1), mx.int32) if first else mx.zeros((1, 1, model.hidden_size), model.dtype)
        self.run(step, inputs)
        self.rest()
        table = self._table(0)
        self.state_bytes_per_row = getattr(table, "full_state_num_bytes", 0)
        state_bytes = getattr(table, "state_num_bytes", 0)
        self.kv_bytes_per_token = (self.kv_num_bytes - state_bytes) // padded_tokens(1, 1)
        self.drop_tables()

    def drop_tables(self) -> None:
        """Forget all KV."""
        self._tables.clear()
        self._ahead = None
        self.runner.drop_cache()
