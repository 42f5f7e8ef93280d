"""The comparison: ours and the peer in one run, in turn, each stopped while the other is timed.

Each round starts a contender afresh, warms it, runs every measure, and stops it; figures are medians over
rounds. Prompts differ from round to round and are the same for both. At the end the parallel answers of ours
are checked for mix-ups (agreement.py).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bench.agreement import Agreement, check_agreement
from bench.contender import BenchError, Contender
from bench.dialects import Ask, Reply
from bench.ground import Ground, make_ground, only_one
from bench.load import LoadResult, Server, run_load
from bench.machine import busy_ratio, describe_busy, describe_machine
from bench.ours import Ours
from bench.peers import MlxLmPipeline
from bench.progress import Progress
from bench.records import Record, make_record, to_data, write_run
from bench.report import (
    describe_contender,
    describe_ground,
    figure_of,
    find_doubts,
    format_figure,
    make_figures_table,
    make_latency_table,
    ratio_of,
    sampled_ratio,
)
from bench.workload import Measure, make_asks, make_measures

ANSWER_LIMIT_S = 600.0
NUM_WARM_UP_ASKS = 2
WARM_UP_PROMPT = "Count from one to twenty in words, please. This is number"
WARM_UP_TOKENS = 8


@dataclass(frozen=True)
class Plan:
    """What to compare."""

    clients: tuple[int, ...]
    max_tokens: int
    num_rounds: int
    seed: int
    with_peer: bool = True
    with_agreement: bool = True


class Comparison:
    """One run of a plan."""

    def __init__(self, plan: Plan, ground: Ground, progress: Progress) -> None:
        self._plan, self._ground, self._progress = plan, ground, progress
        self._measures = make_measures(plan.clients, plan.max_tokens)
        self._encode = ground.make_encoder()
        self.records: list[Record] = []

    def run_round(self, contender: Contender, round_: int) -> None:
        """Start, warm up, measure, stop."""
        plan, say = self._plan, self._progress.line
        prefix = f"round {round_}/{plan.num_rounds}, {contender.name}"
        say(f"{prefix}: starting")
        with contender.running() as server:
            # As many as will ask at once: a server in use has the template's opening in its prompt cache.
            warm_up(server, max(NUM_WARM_UP_ASKS, *plan.clients))
            say(f"{prefix}: ready and warm")
            for measure in self._measures:
                if measure.is_sampled and contender.name != Ours.name:
                    continue  # only held against ours greedy
                record = self._measure(server, measure, contender.name, round_)
                self.records.append(record)
                unit = "s" if measure.is_long else "tokens/s"
                say(f"{prefix}: {measure.title}: {format_figure(figure_of(measure)(record.summary), unit)}")

    def _measure(self, server: Server, measure: Measure, name: str, round_: int) -> Record:
        asks = self._asks_of(measure, round_)
        return make_record(round_, name, measure, ask_server(server, asks, measure.num_clients))

    def _asks_of(self, measure: Measure, round_: int) -> list[Ask]:
        def count_tokens(prompt: str) -> int:
            return len(self._encode(prompt))

        return make_asks(measure, seed=self._plan.seed, round_=round_, count_tokens=count_tokens)

    def check_agreement(self, ours: Ours) -> Agreement:
        """Ask what was asked in parallel again, one at a time, and compare."""
        greedy = [record for record in self.records if record.contender == ours.name and _is_greedy(record)]
        record = max(greedy, key=lambda record: (record.measure.num_clients, record.round))
        asks = self._asks_of(record.measure, record.round)
        self._progress.line(f"the {len(asks)} parallel answers of ours again, one at a time")
        solo = ask_alone(ours, asks)
        self._progress.line("all of them against mlx-lm's own model")
        return check_agreement(self._ground, asks, record.result.replies, solo)


def _is_greedy(record: Record) -> bool:
    return not record.measure.is_sampled and not record.measure.is_long


def ask_alone(ours: Ours, asks: Sequence[Ask]) -> list[Reply]:
    """Ask one at a time, in a new life of the service: its prompt cache knows nothing of other runs."""
    with ours.running() as server:
        warm_up(server)
        return ask_server(server, asks, 1).replies


def ask_server(server: Server, asks: Sequence[Ask], num_clients: int) -> LoadResult:
    """Run a load.

    Raises:
        BenchError: the server cannot be reached at all.
    """
    try:
        return run_load(server, asks, num_clients, limit_s=ANSWER_LIMIT_S)
    except (OSError, TimeoutError) as error:
        raise BenchError(f"{server.host}:{server.port} cannot be reached: {error!r}") from None


def warm_up(server: Server, num_asks: int = NUM_WARM_UP_ASKS) -> None:
    """Ask at once, so that weights are read, batches have been made, and a loading server is ready."""
    asks = [Ask(f"{WARM_UP_PROMPT} {number}.", WARM_UP_TOKENS) for number in range(num_asks)]
    for reply in ask_server(server, asks, num_asks).replies:
        if reply.error is not None:
            raise BenchError(f"the warm-up was not answered: {reply.error}")


def run_comparison(plan: Plan, progress: Progress, *, as_json: bool) -> int:
    """Run the plan, print the report; 0 if all was answered and nothing was mixed up, else 1."""
    started_unix = time.time()
    ground = make_ground()
    with only_one(ground):
        machine = describe_machine()
        quiet = describe_busy(busy_ratio())
        comparison = Comparison(plan, ground, progress)
        ours, peer = Ours(ground), MlxLmPipeline(ground, max(plan.clients))
        contenders: list[Contender] = [ours, *([peer] if plan.with_peer else [])]
        for round_ in range(1, plan.num_rounds + 1):
            for contender in contenders:
                comparison.run_round(contender, round_)
        agreement = comparison.check_agreement(ours) if plan.with_agreement else None
    doubts = [*([quiet] if quiet else []), *find_doubts(comparison.records, ours.name, peer.name)]
    data = {
        "started_unix": started_unix,
        "plan": asdict(plan),
        "machine": machine,
        "model": str(ground.model_folder),
        "num_ranks": ground.num_ranks,
        "contenders": [contender.describe() for contender in contenders],
        "ratios": _make_ratios(comparison.records, ours.name, peer.name),
        "agreement": None if agreement is None else asdict(agreement),
        "doubts": doubts,
        "records": [to_data(record) for record in comparison.records],
    }
    path = write_run(ground.folder, "compare", data)
    if as_json:
        sys.stdout.write(path.read_text(encoding="utf-8") + "\n")
    else:
        print_report(comparison.records, data, agreement, [ours.name, peer.name])
        print(f"\nRaw data: {path}")
    has_failed = any(record.summary.num_failed for record in comparison.records)
    return 1 if has_failed or (agreement is not None and not agreement.is_good) else 0


def _make_ratios(records: Sequence[Record], ours: str, peer: str) -> dict[str, float]:
    ratios = {
        record.measure.name: ratio_of(records, record.measure, ours, peer)
        for record in records
        if not record.measure.is_sampled
    }
    return {**ratios, "sampled_of_greedy": sampled_ratio(records, ours)}


def print_report(
    records: Sequence[Record], data: dict[str, Any], agreement: Agreement | None, names: list[str]
) -> None:
    """Print what was measured, on what, with which settings, and what to doubt."""
    plan = data["plan"]
    print()
    for line in describe_ground(data["machine"], data["model"], data["num_ranks"]):
        print(line)
    for described in data["contenders"]:
        print("\n".join(describe_contender(described)))
    print(f"\nMedians over rounds ({plan['num_rounds']}), one server up at a time; seed {plan['seed']}:\n")
    print("\n".join(make_figures_table(records, *names)))
    print()
    print("\n".join(make_latency_table(records, names)))
    if agreement is not None:
        print("\n" + "\n".join(agreement.lines()))
    if data["doubts"]:
        print("\n" + "\n".join(f"Doubt: {doubt}" for doubt in data["doubts"]))
