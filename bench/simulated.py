"""`bench simulated`: rings of simulated stages against the ideal pipeline (pipeline.py).

For each ring size: a fresh service, a load of all clients at once with a record of every step, and one long
prompt alone. Shares are measured over ideal (for the time to the first token ideal over measured), so 1 is
perfect. `decode` counts only the time in which all streams were being decoded; `bubbles` is the share of that
time in which a stage did nothing, mean over the ranks. The stages sleep, so that rings larger than the
machine's cores can be measured; frames, ring, scheduler, sampling, spool and HTTP are real.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from bench.contender import BenchError
from bench.dialects import Ask
from bench.ground import Ground, make_ground, only_one
from bench.load import LoadResult
from bench.machine import busy_ratio, describe_busy, describe_machine
from bench.measures import LONG_PROMPT_TOKENS
from bench.measuring import ask_server, load_recorded, warm_up
from bench.ours import Ours
from bench.pipeline import Pipeline, split_by_speed
from bench.progress import Progress
from bench.records import plain, write_run
from bench.summary import Summary, summarize
from bench.timeline import busy_shares, decode_rate, full_window, most_rows, read_spans
from bench.workload import make_long_prompt, make_prompts
from cluster.terminal import make_table
from config.simulated import SimulatedModel

DEFAULT_MODEL = "simulated:layers=32,layer_us=2500,row_us=50,token_us=25"
CHUNK_TOKENS = 128  # PREFILL_CHUNK_TOKENS=auto without a GPU
SHOWN_SETTINGS = ("MICROBATCHES", "PREFILL_CHUNK_TOKENS", "MAX_ROWS_PER_MICROBATCH")


@dataclass(frozen=True)
class SimulatedPlan:
    """What to measure; `speeds` by rank makes the rings uneven, and layers are then planned for them."""

    model_repo: str
    ring_sizes: tuple[int, ...]
    num_clients: int
    max_tokens: int
    seed: int
    speeds: tuple[float, ...] = ()


@dataclass(frozen=True)
class RingFigures:
    """One ring's figures; rates in tokens a second of all streams together."""

    num_ranks: int
    layer_counts: tuple[int, ...]  # by rank
    num_rows: int  # streams that were decoded at once, at the most: what `decode` is of
    num_microbatches: int  # of the ideal
    load_rate: float
    ideal_load_rate: float
    decode_rate: float
    ideal_decode_rate: float
    busy: tuple[float, ...]  # by rank, while all streams were decoded
    prompt_tokens: int
    ttft_s: float
    ideal_ttft_s: float

    @property
    def bubbles(self) -> float:
        """Share of the stages' time in which nothing was done."""
        return 1 - sum(self.busy) / len(self.busy)

    @property
    def shares(self) -> dict[str, float]:
        """Measured over ideal."""
        return {
            "decode": self.decode_rate / self.ideal_decode_rate,
            "load": self.load_rate / self.ideal_load_rate,
            "ttft": self.ideal_ttft_s / self.ttft_s,
        }


def run_simulated(plan: SimulatedPlan, progress: Progress, *, as_json: bool) -> int:
    """Measure every ring and print; 0 if all was answered, else 1."""
    started_unix = time.time()
    speeds = f",speeds={':'.join(f'{speed:g}' for speed in plan.speeds)}" if plan.speeds else ""
    plan = replace(plan, model_repo=plan.model_repo + speeds)
    ground = make_ground({"MODEL_REPO": plan.model_repo})
    figures, records = [], []
    with only_one(ground):
        quiet = describe_busy(busy_ratio())
        for num_ranks in plan.ring_sizes:
            found, record = measure_ring(plan, replace(ground, num_ranks=num_ranks), progress)
            figures.append(found)
            records.append(record)
    data = {
        "started_unix": started_unix,
        "plan": asdict(plan),
        "machine": describe_machine(),
        "settings": {key: str(ground.settings.public()[key]) for key in SHOWN_SETTINGS},
        "doubts": [quiet] if quiet else [],
        "rings": [to_data(found) for found in figures],
        "records": records,
    }
    path = write_run(ground.folder, "simulated", data)
    if as_json:
        sys.stdout.write(path.read_text(encoding="utf-8") + "\n")
    else:
        print("\n" + "\n".join(describe_rings(plain(data))))
        print(f"\nRaw data: {path}")
    return 0


def measure_ring(plan: SimulatedPlan, ground: Ground, progress: Progress) -> tuple[RingFigures, Any]:
    """Start a ring, load it, stop it."""
    model = SimulatedModel.from_name(plan.model_repo)
    num_ranks = ground.num_ranks
    counts = split_by_speed(model, num_ranks)
    ours = Ours(
        ground,
        {
            "MODEL_REPO": (plan.model_repo, "what is measured"),
            "LAYER_SPLIT": (",".join(map(str, counts)), "planned by the speeds of the ranks"),
            "BLAS_THREADS": ("1", "nothing is computed"),
            "SPOOL_DURABILITY": ("process", "the disk is not what is measured"),
        },
        makes_drafts=False,
    )
    pipeline = Pipeline(model, counts)
    progress.line(f"{num_ranks} ranks, layers {counts} from rank 0 on: starting")
    with ours.running() as server:
        warm_up(server, plan.num_clients)
        progress.line(f"{num_ranks} ranks: {plan.num_clients} clients x {plan.max_tokens} tokens")
        result, record = load_recorded(server, ours, make_asks(plan), plan.num_clients)
        progress.line(f"{num_ranks} ranks: one prompt of {LONG_PROMPT_TOKENS} tokens")
        long = ask_server(server, [make_long_ask(plan, ground)], 1)
    summaries = [summarize(found.replies, found.wall_s) for found in (result, long)]
    if any(summary.num_failed for summary in summaries):
        errors = [reply.error for found in (result, long) for reply in found.replies if reply.error]
        raise BenchError(f"a ring of {num_ranks} left asks unanswered: {errors[0]}")
    return make_figures(plan, pipeline, result, record, summaries[1]), record


def make_asks(plan: SimulatedPlan) -> list[Ask]:
    """One for each client."""
    prompts = make_prompts(random.Random(f"{plan.seed}/simulated"), plan.num_clients)
    return [Ask(prompt, plan.max_tokens) for prompt in prompts]


def make_long_ask(plan: SimulatedPlan, ground: Ground) -> Ask:
    """A long prompt that is wanted for its first token."""
    encode = ground.make_encoder()
    source = random.Random(f"{plan.seed}/simulated-long")
    return Ask(make_long_prompt(source, lambda prompt: len(encode(prompt))), max_tokens=2)


def make_figures(
    plan: SimulatedPlan, pipeline: Pipeline, result: LoadResult, record: Any, long: Summary
) -> RingFigures:
    """Hold what was measured against the ideal."""
    num_ranks = len(pipeline.layer_counts)
    spans = read_spans(record)
    num_rows = most_rows(spans)
    window = full_window(spans, num_rows)
    if window is None:
        raise BenchError(f"{num_ranks} ranks: too few steps without a prompt; give the answers more tokens")
    fresh = [max(1, int(reply.usage["prompt_tokens"]) - reply.num_cached_tokens) for reply in result.replies]
    num_tokens = sum(reply.num_tokens for reply in result.replies)
    long_tokens = long.prompt_tokens - long.cached_tokens
    return RingFigures(
        num_ranks=num_ranks,
        layer_counts=pipeline.layer_counts,
        num_rows=num_rows,
        num_microbatches=pipeline.best_num_microbatches(num_rows),
        load_rate=num_tokens / result.wall_s,
        ideal_load_rate=num_tokens / pipeline.load_s(fresh, plan.max_tokens, CHUNK_TOKENS),
        decode_rate=decode_rate(spans, *window),
        ideal_decode_rate=pipeline.decode_rate(num_rows),
        busy=tuple(busy_shares(spans, num_ranks, *window)),
        prompt_tokens=long_tokens,
        ttft_s=long.ttft_s.p50,
        ideal_ttft_s=pipeline.prompt_s(long_tokens),
    )


def to_data(found: RingFigures) -> dict[str, Any]:
    """For JSON, with what is worked out."""
    return {**asdict(found), "bubbles": found.bubbles, "shares": found.shares}


def describe_rings(data: dict[str, Any]) -> list[str]:
    """The report's text, from the raw data alone."""
    plan, machine = data["plan"], data["machine"]
    return [
        f"Machine: {machine['processor']}, {machine['num_cores']} cores",
        f"Model: {plan['model_repo']}; {plan['num_clients']} clients x {plan['max_tokens']} tokens; "
        + ", ".join(f"{key}={value}" for key, value in data["settings"].items()),
        "",
        *make_table(make_rows(data["rings"])),
        *(f"Doubt: {doubt}" for doubt in data["doubts"]),
    ]


def make_rows(rings: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """One row a ring: measured, ideal, share."""
    head = (
        "ranks",
        "layers",
        "streams",
        "decode tok/s",
        "ideal",
        "share",
        "bubbles",
        "load tok/s",
        "ideal",
        "share",
    )
    rows: list[tuple[str, ...]] = [(*head, "TTFT s", "ideal", "share")]
    for ring in rings:
        shares = ring["shares"]
        rows.append(
            (
                str(ring["num_ranks"]),
                ",".join(map(str, ring["layer_counts"])),
                str(ring["num_rows"]),
                f"{ring['decode_rate']:.1f}",
                f"{ring['ideal_decode_rate']:.1f}",
                f"{shares['decode']:.3f}",
                f"{ring['bubbles']:.1%}",
                f"{ring['load_rate']:.1f}",
                f"{ring['ideal_load_rate']:.1f}",
                f"{shares['load']:.3f}",
                f"{ring['ttft_s']:.3f}",
                f"{ring['ideal_ttft_s']:.3f}",
                f"{shares['ttft']:.3f}",
            )
        )
    return rows
