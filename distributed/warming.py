"""Rank 0's last work before READY: steps round the whole ring, so that ready means real progress.

A first prompt everywhere; where kernels are compiled at their first use, then a step of each class that
serving uses (engine/warm_up.py) and draws from logits of each size. Knows no requests.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence as Items
from dataclasses import replace

import mlx.core as mx
import numpy as np

from distributed.backends.stage import Stage
from distributed.engine.row_sampling import RowSampling
from distributed.engine.sampling import Draws
from distributed.engine.warm_up import WarmUp, plan_draws, plan_warm_up
from distributed.joining import AnyRing, Launch, receive
from distributed.planning.step import StageStep
from distributed.ring.frame import Frame, Kind, make_step_frame, parse_step
from distributed.ring.ring import MAX_UNREAD_BYTES
from distributed.utils import broadcast_prompt

TOKEN_IDS = (1, 2, 3, 4, 5, 6, 7, 8)
SHOWN_AFTER_SECONDS = 2.0

GREEDY = RowSampling(temperature=0.0, top_p=1.0, top_k=0, min_p=0.0, seed=0, choice=0, index=0)
SAMPLED = replace(GREEDY, temperature=1.0)


def warm_up(launch: Launch, ring: AnyRing, stage: Stage, plan: WarmUp) -> None:
    """Run all that is due, then drop its KV everywhere."""
    limit_seconds = launch.settings.load_timeout
    for _ in range(broadcast_prompt(ring, TOKEN_IDS, max_chunk_tokens=plan.limits.max_chunk_tokens)):
        _answer(launch, ring, stage)
    if stage.runner.compiles_kernels:
        _run_all(launch, ring, stage, plan)
    stage.drop_tables()
    ring.send(Frame(Kind.CACHE, ring.epoch))
    receive(ring, launch.watchdog, limit_seconds)


def _run_all(launch: Launch, ring: AnyRing, stage: Stage, plan: WarmUp) -> None:
    """Run the plan, a step for each rank in flight; show the progress where it takes long."""
    start, is_shown = time.monotonic(), False
    steps, num_draws = plan_warm_up(plan), plan_draws(plan)
    left = deque(_to_frame(number, step, ring.epoch) for number, step in enumerate(steps, 1))
    sent: deque[Frame] = deque()
    for number in range(1, len(steps) + 1):
        while left and _can_send(left[0], sent, ring.size):
            sent.append(left.popleft())
            ring.send(sent[-1])
        sent.popleft()
        step, output = _answer(launch, ring, stage)
        if step.num_tokens == 1:
            draw_all_ways(stage, step, output, [(row, 0) for row, count in enumerate(step.counts) if count])
        elif num_draws:  # logits of one column among several
            for num in num_draws:
                draw_all_ways(stage, step, output, [(0, 0)] * num)
            num_draws = []
        if not is_shown and time.monotonic() - start > SHOWN_AFTER_SECONDS:
            launch.watchdog.enter("warming", launch.settings.load_timeout)
            is_shown = True
        launch.watchdog.progress(number / len(steps))


def _can_send(frame: Frame, sent: Items[Frame], num_ranks: int) -> bool:
    """Whether each rank could have one, and none has to wait in a socket that is full."""
    num_bytes = sum(each.num_bytes for each in (*sent, frame))
    return not sent or (len(sent) < num_ranks and num_bytes <= MAX_UNREAD_BYTES)


def _answer(launch: Launch, ring: AnyRing, stage: Stage) -> tuple[StageStep, mx.array]:
    """Run the last stage for the next frame."""
    frame, hidden = receive(ring, launch.watchdog, launch.settings.load_timeout)
    step, ids = parse_step(frame)
    output = stage.run(step, mx.array(ids) if hidden is None else hidden)
    mx.eval(stage.logits(step, output))
    return step, output


def draw_all_ways(stage: Stage, step: StageStep, output: mx.array, wanted: Items[tuple[int, int]]) -> None:
    """Draw from these rows and columns of a step: all the most likely, all at random, and half of each."""
    num = len(wanted)
    for num_greedy in sorted({0, num // 2, num}):
        rows = [GREEDY] * num_greedy + [SAMPLED] * (num - num_greedy)
        draws = Draws(stage.logits(step, output, wanted), rows, stage.runner.greedy)
        stage.runner.wait(*draws.arrays)
        draws.finish()


def _to_frame(number: int, step: StageStep, epoch: int) -> Frame:
    ids = np.resize(np.array(TOKEN_IDS, np.int32), (step.num_rows, step.num_tokens))
    return make_step_frame(step, ids, epoch=epoch, number=number)
