"""`bench simulated`: rings of simulated stages against the ideal pipeline.

For each ring size: a fresh service, a load of all clients at once with a record of every step, and one long
prompt alone. The stages sleep, so rings may have more ranks than the machine has cores; frames, ring,
scheduler, sampling, spool and HTTP are real. In the ideal only the stages take time: with s(r, B) the
time of rank r's stage for B rows of a token, C streams in M microbatches of C / M rows take
max(M x max s, sum s) for a token each; the ideal takes the best M. `bubbles` is the idle share of the stages'
time while all streams were decoded.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bench.client import Ask
from bench.load import LoadResult, run_load, short, warm_up
from bench.prompts import make_long_prompt, make_prompts
from bench.report import finish_run
from bench.results import ResultFile, Row, make_head
from bench.service import Service
from bench.setup import BenchError, Setup, fill, make_setup, only_run, say
from bench.step_record import end_record, fetch_record, start_record
from bench.timeline import Span, busy_shares, read_spans
from config.simulated import SimulatedModel

LONG_PROMPT_TOKENS = 1350
RECORD_LIMIT_S = 600.0
SETTINGS = {
    "BLAS_THREADS": "1",  # nothing is computed
    "SPOOL_DURABILITY": "process",  # leaves the disk out
    "SPECULATION": "off",
}


@dataclass(frozen=True)
class SimulatedPlan:
    """The rings to measure; the model's name may give the ranks different speeds."""

    model_repo: str
    ring_sizes: tuple[int, ...]
    num_clients: int
    max_tokens: int
    seed: int


@dataclass(frozen=True)
class Pipeline:
    """The ideal of a simulated model on a ring; `layer_counts` by rank."""

    model: SimulatedModel
    layer_counts: tuple[int, ...]

    def decode_rate(self, num_streams: int) -> float:
        """Tokens a second of `num_streams` streams, with the best number of microbatches."""
        return max(num_streams / self._turn_s(num_streams, num) for num in range(1, num_streams + 1))

    def _turn_s(self, num_streams: int, num_microbatches: int) -> float:
        """Seconds in which every stream gets one token."""
        num_rows = num_streams / num_microbatches
        times = [
            self.model.stage_us(rank=rank, num_layers=count, num_rows=num_rows, num_tokens=1)
            for rank, count in enumerate(self.layer_counts)
        ]
        times[0] += self.model.draw_us(num_rows)
        return max(num_microbatches * max(times), sum(times)) / 1e6


def split_by_speed(model: SimulatedModel, num_ranks: int) -> tuple[int, ...]:
    """The layers of each rank, at least one, so that the slowest stage is as fast as possible."""
    counts = [1] * num_ranks
    for _ in range(model.layers - num_ranks):
        rank = min(range(num_ranks), key=lambda rank: ((counts[rank] + 1) / model.speed_of(rank), -rank))
        counts[rank] += 1
    return tuple(counts)


def run(options: argparse.Namespace) -> int:
    """Measure every ring and print; 0."""
    plan = fill(SimulatedPlan, options)
    setup = make_setup({"MODEL_REPO": plan.model_repo})
    with only_run(setup):
        head = make_head("simulated")
        rings = [measure_ring(plan, replace(setup, num_ranks=num_ranks)) for num_ranks in plan.ring_sizes]
    servers, rows = zip(*rings, strict=True)
    head |= {
        "model": f"{plan.model_repo}; {plan.num_clients} clients x {plan.max_tokens} tokens",
        "num_ranks": ", ".join(map(str, plan.ring_sizes)),
        "servers": servers[:1],
    }
    finish_run(setup.folder, ResultFile(head, rows), as_json=options.json)
    return 0


def measure_ring(plan: SimulatedPlan, setup: Setup) -> tuple[dict[str, Any], Row]:
    """Start a ring, load it, stop it."""
    model = SimulatedModel.from_name(plan.model_repo)
    pipeline = Pipeline(model, split_by_speed(model, setup.num_ranks))
    layers = ",".join(map(str, pipeline.layer_counts))
    service = Service(setup, {**SETTINGS, "MODEL_REPO": plan.model_repo, "LAYER_SPLIT": layers})
    source = random.Random(f"{plan.seed}/simulated")
    asks = [Ask(prompt, plan.max_tokens) for prompt in make_prompts(source, plan.num_clients)]
    say(f"{setup.num_ranks} ranks, layers {layers} from rank 0 on: starting")
    with service.running() as server:
        warm_up(server, plan.num_clients)
        say(f"{setup.num_ranks} ranks: {plan.num_clients} clients x {plan.max_tokens} tokens")
        wanted = start_record(service.settings, RECORD_LIMIT_S)
        result = run_load(server, asks, plan.num_clients)
        end_record(service.settings)
        record = fetch_record(service.settings, wanted)
        say(f"{setup.num_ranks} ranks: one prompt of {LONG_PROMPT_TOKENS} tokens")
        long = run_load(server, [Ask(make_long_prompt(source, LONG_PROMPT_TOKENS), 2)], 1)
    replies = [*result.replies, *long.replies]
    if errors := [reply.error for reply in replies if reply.error]:
        raise BenchError(f"a ring of {setup.num_ranks} left requests unanswered: {errors[0]}")
    return service.describe(), make_ring_row(pipeline, result, read_spans(record), long.replies[0].ttft_s)


def make_ring_row(pipeline: Pipeline, result: LoadResult, spans: Sequence[Span], ttft_s: float) -> Row:
    """Compare the measured ring with the ideal.

    Raises:
        BenchError: the streams were never decoded all at once.
    """
    num_ranks, num_streams = len(pipeline.layer_counts), most_rows(spans)
    window = full_window(spans, num_streams)
    if window is None:
        raise BenchError(f"{num_ranks} ranks: too few steps without a prompt; give the answers more --tokens")
    rate, ideal = decode_rate(spans, *window), pipeline.decode_rate(num_streams)
    busy = busy_shares(spans, num_ranks, *window)
    return {
        "layer_counts": list(pipeline.layer_counts),
        "num_streams": num_streams,
        "decode_rate": short(rate),
        "ideal_decode_rate": short(ideal),
        "share": short(rate / ideal),
        "bubbles": short(1 - sum(busy) / len(busy)),
        "load_rate": short(sum(reply.num_tokens for reply in result.replies) / result.wall_s),
        "ttft_s": short(ttft_s),
    }


def head_steps(spans: Sequence[Span]) -> Iterator[tuple[Span, int]]:
    """Rank 0's steps, each with the rows of all decode groups at that time."""
    rows: dict[int, int] = {}
    for span in spans:
        if span.rank == 0:
            if not span.is_prefill:
                rows[span.table] = span.num_rows
            yield span, sum(rows.values())


def most_rows(spans: Sequence[Span]) -> int:
    """The largest number of rows in all decode groups together."""
    return max((num_rows for _, num_rows in head_steps(spans)), default=0)


def full_window(spans: Sequence[Span], num_rows: int) -> tuple[int, int] | None:
    """The longest time without a prefill chunk in which `num_rows` rows were decoded in turn.

    On rank 0, from the end of a step to the end of another; None if there is none.
    """
    best: tuple[int, int] | None = None
    begin: int | None = None
    for span, num_now in head_steps(spans):
        if span.is_prefill or num_now != num_rows:
            begin = None
        elif begin is None:
            begin = span.end_us
        elif best is None or span.end_us - begin > best[1] - best[0]:
            best = begin, span.end_us
    return best


def decode_rate(spans: Sequence[Span], begin_us: int, end_us: int) -> float:
    """Tokens a second that rank 0 decoded within a window."""
    decoded = [span for span in spans if span.rank == 0 and not span.is_prefill]
    num_tokens = sum(span.num_rows for span in decoded if begin_us < span.end_us <= end_us)
    return num_tokens * 1e6 / max(1, end_us - begin_us)
