"""A scheduler and the stages of one model in one process: whole answers without spool, ring or clock."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx

from distributed.backends.backend import Backend
from distributed.backends.stage import Stage
from distributed.engine.engine import to_frame
from distributed.engine.row_sampling import RowSampling
from distributed.engine.sampling import Draws
from distributed.engine.sequence import Drawn, Microbatch, Sequence
from distributed.ring.frame import parse_step
from tests.services.scheduling import make_scheduler
from tests.services.stages import load_runners

GREEDY = RowSampling(temperature=0.0, top_p=1.0, top_k=0, min_p=0.0, seed=0, choice=0, index=0)
WARM = replace(GREEDY, temperature=0.7, seed=5)


def load_stages(
    folder: Path, counts: Items[int], backend: Backend | None = None, **options: Any
) -> list[Stage]:
    """Load the stages of `counts` layers, first layers first; options as for `Backend.load`."""
    stages = [Stage(runner) for runner in load_runners(folder, counts, backend, **options)]
    for stage in stages:
        stage.measure_kv()
    return stages


class LocalRing:
    """Steps microbatches through all stages in the order in which they were made."""

    def __init__(self, stages: Items[Stage], *, num_tables: int = 1, kept: int = 0, **shape: Any) -> None:
        """
        Args:
            stages: of one model, in order; they forget their KV.
            shape: of the scheduler, and its drafter.
        """
        self.stages = stages
        for stage in stages:
            stage.drop_tables()
        self.scheduler = make_scheduler(num_tables=num_tables, kept=kept, **shape)
        self.scheduler.limits = replace(self.scheduler.limits, max_in_flight=num_tables + 1)
        self.failed: list[Sequence] = []
        self.rules: dict[Sequence, RowSampling] = {}

    def ask(self, prompt: Items[int], max_tokens: int, rule: RowSampling = GREEDY) -> Sequence:
        """Add a prompt."""
        sequence = Sequence(str(len(self.rules)), list(prompt), len(prompt), max_tokens)
        self.rules[sequence] = rule
        self.scheduler.add(sequence)
        return sequence

    def run(self, num_steps: int = 100_000) -> None:
        """Step until all are done, at most `num_steps` times."""
        for _ in range(num_steps):
            while self.scheduler.schedule():
                pass
            if not self.scheduler.in_flight:
                return
            self.step(self.scheduler.in_flight[0])

    def step(self, microbatch: Microbatch) -> None:
        """Take the oldest microbatch through all stages and its draws to the scheduler."""
        step, ids = parse_step(to_frame(microbatch, 1))
        assert ids is not None
        hidden = mx.array(ids)
        for stage in self.stages:
            hidden = stage.run(step, hidden)
            limit = self.scheduler.slots.limits.max_kv_tokens
            assert stage.kv_num_bytes <= limit * max(each.kv_bytes_per_token for each in self.stages)
        drawn: dict[Sequence, Drawn] = {}
        for i, row in enumerate(microbatch.rows):
            sequence = row.sequence
            if microbatch.wants_logits and sequence is not None and row.wants_tokens:
                ahead = range(row.num_drafts + 1)
                rule, first = self.rules[sequence], sequence.num_answer_tokens
                wanted = [(i, row.num_known - 1 + number) for number in ahead]
                rules = [replace(rule, index=first + number) for number in ahead]
                logits = self.stages[-1].logits(step, hidden, wanted)
                draws = Draws(logits, rules, self.stages[-1].runner.greedy)
                self.stages[-1].runner.wait(*draws.arrays)
                drawn[sequence] = [None if token is None else token.id for token in draws.finish()]
        for advance in self.scheduler.postprocess(microbatch, drawn):
            if not advance.is_finite:
                self.failed.append(advance.sequence)
            if not advance.is_finite or advance.sequence.ended_by:
                self.scheduler.finish(advance.sequence)


def answer(sequence: Sequence) -> list[int]:
    """Return the tokens after the prompt."""
    return sequence.token_ids[sequence.num_prompt_tokens :]
