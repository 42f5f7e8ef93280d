"""What SPOOL_DURABILITY=power costs at full load: tokens a second of both durabilities, in turn, in one run.

Each round starts the service afresh with one durability, then with the other, and asks both the same prompts
with so many clients at once; the order changes from round to round. The price is 1 - power / process of each
round, so that a machine that grows slower tells nothing of either. What a single request pays on an idle
service is `overhead`'s question.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.contender import BenchError
from bench.dialects import Ask
from bench.ground import Ground, make_ground, only_one
from bench.machine import busy_ratio, describe_busy, describe_machine
from bench.measuring import ask_server, warm_up
from bench.ours import Ours
from bench.progress import Progress
from bench.records import write_run
from bench.report import describe_ground
from bench.summary import median, summarize
from bench.workload import make_prompts
from cluster.terminal import make_table

DURABILITIES = ("process", "power")


@dataclass(frozen=True)
class DurabilityPlan:
    """How much to ask of each durability in each round."""

    num_clients: int
    asks_per_client: int
    max_tokens: int
    num_rounds: int
    seed: int


def run_durability(plan: DurabilityPlan, progress: Progress, *, as_json: bool) -> int:
    """Measure and print; 0."""
    started_unix = time.time()
    ground = make_ground()
    rounds = []
    with only_one(ground):
        quiet = describe_busy(busy_ratio())
        for number in range(1, plan.num_rounds + 1):
            order = DURABILITIES if number % 2 else DURABILITIES[::-1]
            rates = {name: _measure(plan, ground, name, number, progress) for name in order}
            rounds.append({**rates, "price": price_of(rates["process"], rates["power"])})
    data: dict[str, Any] = {
        "started_unix": started_unix,
        "machine": describe_machine(),
        "plan": vars(plan),
        "rounds": rounds,
        "median_price": median(each["price"] for each in rounds),
        "doubts": [quiet] if quiet else [],
    }
    path = write_run(ground.folder, "durability", data)
    if as_json:
        sys.stdout.write(path.read_text(encoding="utf-8") + "\n")
    else:
        print("\n" + "\n".join(describe_ground(data["machine"], str(ground.model_folder), ground.num_ranks)))
        print("\n" + "\n".join(describe_rounds(rounds, data["median_price"])))
        print("\n".join(f"Doubt: {doubt}" for doubt in data["doubts"]))
        print(f"Raw data: {path}")
    return 0


def price_of(process_rate: float, power_rate: float) -> float:
    """The share of throughput that power costs."""
    return 1 - power_rate / process_rate


def describe_rounds(rounds: Sequence[dict[str, Any]], median_price: float) -> list[str]:
    """A table of the rounds, and the price."""
    cells = [("round", "process tokens/s", "power tokens/s", "price of power")]
    for number, each in enumerate(rounds, 1):
        cells.append(
            (str(number), f"{each['process']:.1f}", f"{each['power']:.1f}", f"{each['price'] * 100:+.1f} %")
        )
    return [*make_table(cells), "", f"SPOOL_DURABILITY=power costs {median_price * 100:.1f} % (median)"]


def _measure(plan: DurabilityPlan, ground: Ground, durability: str, round_: int, progress: Progress) -> float:
    """Tokens a second of one life of the service."""
    prefix = f"round {round_}/{plan.num_rounds}, {durability}"
    progress.line(f"{prefix}: starting")
    prompts = make_prompts(random.Random(f"{plan.seed}/{round_}"), plan.num_clients * plan.asks_per_client)
    with Ours(ground, {"SPOOL_DURABILITY": (durability, "what is measured")}).running() as server:
        warm_up(server, plan.num_clients)
        asks = [Ask(prompt, plan.max_tokens) for prompt in prompts]
        loaded = ask_server(server, asks, plan.num_clients)
    summary = summarize(loaded.replies, loaded.wall_s)
    if summary.num_failed:
        errors = {reply.error for reply in loaded.replies if reply.error}
        raise BenchError(f"{summary.num_failed} requests were not answered: {'; '.join(map(str, errors))}")
    progress.line(f"{prefix}: {summary.tokens_per_s:.1f} tokens/s")
    return summary.tokens_per_s
