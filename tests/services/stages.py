"""Run stages in one process by handing hidden states on, and mlx-lm's own model beside them."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from config.simulated import SimulatedModel
from distributed.backends.backend import Backend, StageRunner
from distributed.backends.choose import choose_backend
from distributed.backends.simulated import MODULUS, marks_of, next_id
from distributed.backends.stage import Stage
from distributed.planning.step import PrefixCopy, StageStep
from prompts.mlx_lm_import import import_mlx_lm

make_prompt_cache = import_mlx_lm("models.cache").make_prompt_cache


def make_step(
    rows: dict[int, tuple[int, int]], table: int = 0, copies: tuple[PrefixCopy, ...] = ()
) -> StageStep:
    """Build a step from slot -> (offset, count); a count of 0 is a hole."""
    return StageStep(
        table=table,
        slots=tuple(rows),
        offsets=tuple(offset for offset, _ in rows.values()),
        counts=tuple(count for _, count in rows.values()),
        num_tokens=max(count for _, count in rows.values()),
        copies=copies,
    )


class StageChain:
    """The stages of one model, in order, with KV of their own."""

    def __init__(self, stages: Sequence[StageRunner]) -> None:
        self.stages = [Stage(stage) for stage in stages]

    def run(
        self,
        rows: Sequence[Sequence[int]],
        slots: Sequence[int],
        offsets: Sequence[int],
        copies: tuple[PrefixCopy, ...] = (),
    ) -> mx.array:
        """Run one microbatch, rows padded on the right; return logits (B, T, V)."""
        counts = tuple(len(row) for row in rows)
        num_tokens = max(counts)
        step = StageStep(0, tuple(slots), tuple(offsets), counts, num_tokens, copies=copies)
        x = mx.array([[*row, *[7] * (num_tokens - len(row))] for row in rows], dtype=mx.int32)
        for stage in self.stages:
            x = stage.run(step, x)
        B, T, _ = x.shape
        every = list(product(range(B), range(T)))
        return self.stages[-1].logits(step, x, every).reshape(B, T, -1)

    def prefill(self, ids: Sequence[int], slot: int = 0, chunk: int = 1 << 30) -> mx.array:
        """Prefill one row in chunks; return its logits (T, V)."""
        parts = [self.run([ids[i : i + chunk]], [slot], [i])[0] for i in range(0, len(ids), chunk)]
        return mx.concatenate(parts)


def load_runners(
    folder: Path, counts: Sequence[int], backend: Backend | None = None, **options: Any
) -> list[StageRunner]:
    """Load stages of `counts` layers, first layers first; options as for `Backend.load`."""
    backend = backend or choose_backend()
    ends = [sum(counts[: i + 1]) for i in range(len(counts))]
    ranges = [range(end - count, end) for end, count in zip(ends, counts, strict=True)]
    return [
        backend.load(folder, r, is_first=r is ranges[0], is_last=r is ranges[-1], **options) for r in ranges
    ]


def load_whole(folder: Path, num_layers: int, backend: Backend | None = None, **options: Any) -> StageRunner:
    """Load all layers as one stage."""
    (runner,) = load_runners(folder, (num_layers,), backend, **options)
    return runner


def load_chain(
    folder: Path, counts: Sequence[int], backend: Backend | None = None, **options: Any
) -> StageChain:
    """Load stages as `load_runners` does."""
    return StageChain(load_runners(folder, counts, backend, **options))


def greedy_tokens(chain: StageChain, ids: Sequence[int], num_tokens: int, chunk: int = 1 << 30) -> list[int]:
    """Generate greedily from one prompt."""
    logits, out = chain.prefill(ids, chunk=chunk)[-1], []
    for i in range(num_tokens):
        out.append(int(mx.argmax(logits).item()))
        logits = chain.run([out[-1:]], [0], [len(ids) + i])[0, 0]
    return out


def reference_logits(model: Any, ids: Sequence[int]) -> mx.array:
    """Return mlx-lm's logits (T, V) of a prompt."""
    return model(mx.array([list(ids)]), cache=make_prompt_cache(model))[0]


def reference_tokens(model: Any, ids: Sequence[int], num_tokens: int) -> tuple[list[int], list[float]]:
    """Generate greedily with mlx-lm's model; return the tokens and their leads over the second best."""
    cache = make_prompt_cache(model)
    x, out, gaps = mx.array([list(ids)]), [], []
    for _ in range(num_tokens):
        logits = model(x, cache=cache)[0, -1]
        second, best = mx.sort(logits)[-2:].tolist()
        gaps.append(best - second)
        out.append(int(mx.argmax(logits).item()))
        x = mx.array([out[-1:]])
    return out, gaps


def sure_tokens(model: Any, ids: Sequence[int], num_tokens: int, min_gap: float = 1e-3) -> list[int]:
    """Return mlx-lm's greedy tokens up to the first that another batch size may decide otherwise."""
    tokens, gaps = reference_tokens(model, ids, num_tokens)
    return tokens[: next((i for i, gap in enumerate(gaps) if gap < min_gap), num_tokens)]


def expected_ids(model: SimulatedModel, token_ids: Sequence[int], num_tokens: int) -> list[int]:
    """Return the greedy answer of a simulated model to a prompt, in whatever ring."""
    ids = list(token_ids)
    for _ in range(num_tokens):
        total = int(marks_of(np.array(ids), np.arange(len(ids))).sum()) % MODULUS
        ids.append(next_id(model, np.int64(model.layers * total % MODULUS)))
    return ids[len(token_ids) :]
