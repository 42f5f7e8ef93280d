"""Serving runs no kernel that the warm-up before READY did not run."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence as Items
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from config import load_settings
from distributed.backends.stage import Stage
from distributed.engine.drafting import PromptLookup
from distributed.engine.scheduler import SchedulerLimits
from distributed.engine.slots import SlotLimits
from distributed.engine.warm_up import WarmUp, plan_draws, plan_warm_up
from distributed.joining import Launch
from distributed.ring.ring import LoopbackRing
from distributed.ring.watchdog import RankStart, Watchdog
from distributed.self_test.seeded_models import make_model_folder
from distributed.warming import warm_up
from tests.fakes.checkpoints import cast_weights, make_checkpoint
from tests.fakes.family_configs import CONFIGS
from tests.fakes.stand_in_gpu import StandInDevice, StandInGpu
from tests.services.kernel_classes import KernelClass, recorded
from tests.services.local_ring import GREEDY, WARM, LocalRing, load_stages
from tests.services.ring_service import ROOT, RingService

MAX_REQUESTS = 10


class EagerLookup(PromptLookup):
    """Drafts whatever a step costs."""

    def note_cost(self, num_tokens: int, busy_us: float) -> None:
        pass


def make_plan(chunk: int = 96, max_rows: int = 8, max_kv_tokens: int = 6000, max_tokens: int = 500) -> WarmUp:
    slots = SlotLimits(num_tables=2, max_rows=max_rows, max_kv_tokens=max_kv_tokens, max_kept_tokens=0)
    return WarmUp(SchedulerLimits(3, chunk, slots), max_tokens, has_drafts=True)


def warmed(tmp_path: Path, stage: Stage, plan: WarmUp) -> set[KernelClass]:
    """The classes of the warm-up of a ring of one stage."""
    settings = load_settings({"STATE_DIR": str(tmp_path)}, root=tmp_path, environ={})
    launch = Launch(RankStart(1, 0, ("here:0",), ""), settings, Watchdog(0, has_supervisor=False))
    with recorded() as classes:
        warm_up(launch, LoopbackRing(1), stage, plan)
    return classes


def served(stage: Stage, plan: WarmUp, seed: int) -> set[KernelClass]:
    """The classes of a random mixture: prompts of all lengths with shared beginnings, drafts, cancels."""
    chance, limits = random.Random(seed), plan.limits
    ring = LocalRing(
        [stage],
        num_tables=2,
        kept=500,
        chunk=limits.max_chunk_tokens,
        max_rows=plan.max_rows,
        max_kv_tokens=limits.slots.max_kv_tokens,
        row_tokens=limits.slots.row_tokens,
        drafter=EagerLookup() if plan.has_drafts else None,
    )
    shared = tokens(chance, 70)
    num_asked = 0
    with recorded() as classes:
        while num_asked < MAX_REQUESTS or ring.scheduler.has_work:
            if num_asked < MAX_REQUESTS and chance.random() < 0.3:
                num_asked += 1
                prompt = shared[: chance.randrange(5, 70)]
                prompt += tokens(chance, chance.choice([3, 20, 64, 100, plan.max_tokens]))
                prompt += prompt[: chance.choice([0, 12])]  # something to look up
                max_tokens = chance.choice([1, 5, 20, 40])
                prompt = prompt[: plan.max_tokens - max_tokens]
                ring.ask(prompt, max_tokens, chance.choice([GREEDY, WARM]))
            ring.run(1)
            if ring.scheduler.running and chance.random() < 0.02:
                ring.scheduler.finish(chance.choice(ring.scheduler.running))
    return classes


def tokens(chance: random.Random, num: int) -> list[int]:
    return [chance.randrange(250) for _ in range(num)]


@given(
    chunk=st.integers(1, 700),
    max_rows=st.integers(1, 20),
    max_kv_tokens=st.integers(64, 10_000),
    max_tokens=st.integers(2, 40_000),
)
def test_the_warm_up_stays_within_what_serving_may_use(
    chunk: int, max_rows: int, max_kv_tokens: int, max_tokens: int
) -> None:
    """Rows, context and KV memory; its number of steps is bounded, whatever these are."""
    plan = make_plan(chunk, max_rows, max_kv_tokens, max_tokens)
    steps = plan_warm_up(plan)
    shapes: dict[int, tuple[int, int]] = {}
    for step in steps:
        shapes |= {order.table: (order.num_rows, order.num_tokens) for order in step.resizes}
        assert sum(rows * tokens for rows, tokens in shapes.values()) <= max_kv_tokens
        rows, tokens = shapes[step.table]
        assert max(step.slots) < rows and step.num_kv_tokens <= min(tokens, max_tokens)
        assert max(step.slots) < max_rows
        assert min(step.offsets + step.counts) >= 0 and max(step.counts) == step.num_tokens
    assert len(steps) < 280
    assert len(plan_draws(plan)) < 20


def test_a_machine_that_compiles_nothing_runs_a_short_prompt_only(tmp_path: Path) -> None:
    """A start takes no longer where there is nothing to warm."""
    (stage,) = load_stages(make_checkpoint(tmp_path / "model", "llama"), (4,))
    with patch.object(stage, "run", wraps=stage.run) as run:
        warmed(tmp_path, stage, make_plan())
    assert [call.args[0].num_tokens for call in run.call_args_list] == [8]
    assert stage.kv_num_bytes == 0


@pytest.mark.parametrize(
    ("variant", "seeds", "sizes"),
    [
        ("llama", (1, 2), {"max_tokens": 1200, "chunk": 128}),
        pytest.param("deepseek_v2-8bit", (4,), {}, marks=pytest.mark.slow),
        pytest.param("qwen3_moe-8bit", (5,), {}, marks=pytest.mark.slow),
    ],
)
def test_every_kernel_class_of_serving_has_run_before_ready(
    tmp_path: Path, variant: str, seeds: Items[int], sizes: dict[str, Any]
) -> None:
    """Whatever is asked in whatever mixture; without the warm-up's steps some would be new."""
    layers = {"num_hidden_layers": 2}
    folder = cast_weights(make_checkpoint(tmp_path / "model", variant, num_files=1, **layers), mx.bfloat16)
    device = StandInDevice(shape_ms=0.01)
    (stage,) = load_stages(folder, (2,), StandInGpu(device))
    plan = make_plan(**sizes)
    before_ready = warmed(tmp_path, stage, plan)
    stalls = list(device.stalls_ns)
    for seed in seeds:
        assert sorted(map(str, served(stage, plan, seed) - before_ready)) == []
    assert device.stalls_ns == stalls != []


@pytest.mark.slow
def test_every_kernel_class_of_a_hybrid_has_run_before_ready(tmp_path: Path) -> None:
    """Rows that begin beside others that go on, copies of states, tables that take another size."""
    folder = make_model_folder(tmp_path / "model", CONFIGS["nemotron_h"], bits=8, dtype=mx.bfloat16)
    (stage,) = load_stages(folder, (4,), StandInGpu())
    row_tokens = -(-stage.state_bytes_per_row // stage.kv_bytes_per_token)
    plan = make_plan(max_kv_tokens=6000 + 8 * row_tokens)
    slots = replace(plan.limits.slots, row_tokens=row_tokens)
    plan = replace(plan, limits=replace(plan.limits, slots=slots), has_drafts=False)
    # Where a GPU compiles nothing, no more than a short prompt is run before READY.
    stage.runner.compiles_kernels = True
    before_ready = warmed(tmp_path, stage, plan)
    assert sorted(map(str, served(stage, plan, 1) - before_ready)) == []


@pytest.mark.slow
def test_no_rank_of_a_ring_stalls_once_it_is_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The warm-up's steps pass all ranks, and each has met all shapes that requests bring."""
    folder = cast_weights(make_checkpoint(tmp_path / "model", "llama", num_files=1), mx.bfloat16)
    monkeypatch.setenv("STAND_IN_SHAPE_MS", "20")
    monkeypatch.setenv("STAND_IN_RECORD", str(tmp_path))
    ring = RingService(tmp_path / "ring", folder, 2, layer_split="1,3", max_sequence_length=1500)
    ring.program = ROOT / "tests/services/stand_in_rank.py"
    with ring:
        ready_ns = time.monotonic_ns()
        chance = random.Random(6)
        prompts = [tokens(chance, num) for num in (3, 20, 64, 300, 1300, 7, 40)]
        ring.ask(*(ring.request(prompt + prompt[:10], max_tokens=30, ignore_eos=True) for prompt in prompts))
        ring.ask(ring.request(prompts[0], max_tokens=30, temperature=1.0, seed=1))
        assert ring.stop() == [0, 0]
    for rank in (0, 1):
        stalls = json.loads((tmp_path / f"rank-{rank}.json").read_text())["stalls_ns"]
        num_early = sum(stall < ready_ns for stall in stalls)
        print(f"\nrank {rank}: {num_early} new shapes before READY, {len(stalls) - num_early} after")
        assert 5 < len(stalls) == num_early < 40
