"""A stage: the layers one rank owns, with the KV of every table.

Knows how to run one microbatch through its layers; nothing of requests, sampling or sockets. The same code
runs on every rank; only the first has the embedding and only the last the norm and the head."""

from __future__ import annotations

import mlx.core as mx

from distributed.frame import StageStep
from distributed.kv_cache import KVTable
from distributed.kv_sizes import padded_tokens
from distributed.models import StageModel


class Stage:
    """Runs microbatches in the order of their frames; a KV table exists from its first step on."""

    def __init__(self, model: StageModel) -> None:
        self.model = model
        self._tables: dict[int, KVTable] = {}
        self.kv_bytes_per_token = 0

    @property
    def kv_num_bytes(self) -> int:
        return sum(table.num_bytes for table in self._tables.values())

    def run(self, step: StageStep, inputs: mx.array) -> mx.array:
        """Run the layers and wait for the result.

        Args:
            inputs: token ids (B, T) int32 on the first stage, hidden states (B, T, D) on the others.

        Returns:
            Hidden states (B, T, D), after the final norm on the last stage.
        """
        table = self._tables.setdefault(step.table, KVTable(len(self.model.layers)))
        if step.resets_table:
            table.reset()
        for copy in step.copies:
            source = self._tables[copy.from_table]
            table.copy_prefix(source, copy.from_slot, copy.to_slot, copy.num_tokens)
        hidden = self.model.forward(inputs, table.begin(step))
        mx.eval(hidden, table.arrays)
        return hidden

    def logits(self, step: StageStep, hidden: mx.array) -> mx.array:
        """Return the logits of each real row's last token, (rows with count > 0, V); lazy."""
        real = [i for i, count in enumerate(step.counts) if count]
        if step.num_tokens == 1 and len(real) == step.num_rows:
            return self.model.logits(hidden[:, 0])
        columns = [step.counts[i] - 1 for i in real]
        return self.model.logits(hidden[mx.array(real), mx.array(columns)])

    def measure_kv(self) -> None:
        """Run one token, to learn what its KV takes and to compile what is compiled on first use."""
        step = StageStep(0, slots=(0,), offsets=(0,), counts=(1,), num_tokens=1)
        first, model = self.model.is_first, self.model
        inputs = mx.zeros((1, 1), mx.int32) if first else mx.zeros((1, 1, model.hidden_size), model.dtype)
        self.run(step, inputs)
        self.kv_bytes_per_token = self.kv_num_bytes // padded_tokens(1, 1)
        self.drop_tables()

    def drop_tables(self) -> None:
        """Forget all KV."""
        self._tables.clear()
