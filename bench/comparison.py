"""The comparison: ours and its peers in one run, in turn, each stopped while another is timed.

Each round starts a contender afresh, warms it, runs its measures, and stops it; figures are medians over
rounds. Prompts differ from round to round and are the same for all. Ours and the peer on the same ring, with
its best and with its default flags, take turns in every round; what is measured once (other ring sizes,
mlx.launch, the mixture of experts, what no promise is about) runs in the first. At the end some parallel
answers of ours are checked for mix-ups (agreement.py).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from bench.agreement import Agreement, check_agreement
from bench.contender import BenchError, Contender
from bench.ground import Ground, make_ground, only_one
from bench.machine import busy_ratio, describe_busy, describe_machine
from bench.measures import (
    AGREEMENT_ANSWERS,
    GROUPS,
    Measure,
    choose,
    for_blas_alone,
    for_default_flags,
    make_measures,
    make_moe_measures,
    make_ring_size_measures,
    make_shipped_measure,
)
from bench.measuring import NUM_WARM_UP_ASKS, Questions, ask_alone, run_measure, warm_up
from bench.names import BLAS_ALONE, DEFAULT_PEER, DRAFTS, OURS, PEER
from bench.ours import Ours
from bench.peers import MlxLmServer
from bench.progress import Progress
from bench.random_model import make_random_model
from bench.records import Record, plain, to_data, write_run
from bench.report import describe_run, find_doubts, format_figure, ratios
from config.limits import count_cores

MOE_SETTINGS = {
    "MAX_SEQUENCE_LENGTH": ("16384", "a context of 8192 tokens"),
    "MAX_PROMPT_LEN_BYTES": ("200000", "a prompt of 8192 tokens"),
    "MAX_BODY_BYTES": ("1048576", "a prompt of 8192 tokens"),
}


@dataclass(frozen=True)
class Plan:
    """What to compare; `only` holds groups and names of measures."""

    clients: tuple[int, ...]
    max_tokens: int
    num_rounds: int
    seed: int
    only: tuple[str, ...] = GROUPS
    with_peer: bool = True
    with_agreement: bool = True

    @property
    def checks_agreement(self) -> bool:
        """There are parallel answers of ours, and they shall be checked."""
        return self.with_agreement and "throughput" in self.only


@dataclass(frozen=True)
class Entry:
    """A contender with what it runs, and in how many rounds."""

    contender: Contender
    measures: list[Measure]
    num_rounds: int
    questions: Questions


def make_entries(plan: Plan, ground: Ground) -> list[Entry]:
    """Everybody who has something to run."""
    most, questions = max(plan.clients), Questions(ground, plan.seed)
    main = choose(make_measures(plan.clients, plan.max_tokens), plan.only)
    shipped = [make_shipped_measure()] if "shipped" in plan.only else []
    theirs = [measure for measure in main if not measure.is_sampled]
    entries = [
        Entry(Ours(ground, makes_drafts=False), [*shipped, *main], plan.num_rounds, questions),
        Entry(MlxLmServer(ground, most), theirs, plan.num_rounds, questions),
        Entry(
            MlxLmServer(ground, most, has_default_flags=True),
            for_default_flags(theirs),
            plan.num_rounds,
            questions,
        ),
        Entry(MlxLmServer(ground, most, "mlx.launch"), shipped, 1, questions),
    ]
    if "blas-alone" in plan.only:
        extra = {"CPU_PRODUCTS": ("blas", "the same products for every contender")}
        alone = Ours(ground, extra, name=BLAS_ALONE, makes_drafts=False)
        entries.append(Entry(alone, for_blas_alone(main), 1, questions))
    drafting = Ours(ground, name=DRAFTS, makes_drafts=True)
    entries.append(Entry(drafting, [measure for measure in main if measure.kind == "edits"], 1, questions))
    if "ring-size" in plan.only:
        single = replace(ground, num_ranks=1, num_blas_threads=count_cores())
        sizes = make_ring_size_measures(plan.clients, plan.max_tokens)
        entries.append(Entry(Ours(single, name="ours, 1 rank", makes_drafts=False), sizes, 1, questions))
        entries.append(Entry(MlxLmServer(single, most, "one process"), sizes, 1, questions))
    entries += _make_moe_entries(plan, ground)
    wanted = [entry for entry in entries if entry.measures]
    return [entry for entry in wanted if plan.with_peer or isinstance(entry.contender, Ours)]


def _make_moe_entries(plan: Plan, ground: Ground) -> list[Entry]:
    measures = choose(make_moe_measures(), plan.only)
    if not measures:
        return []
    moe = replace(ground, model_folder=make_random_model(ground))
    questions = Questions(moe, plan.seed)
    most = max(measure.num_clients for measure in measures)
    return [
        Entry(Ours(moe, MOE_SETTINGS, makes_drafts=False), measures, 1, questions),
        Entry(MlxLmServer(moe, most), measures, 1, questions),
    ]


class Comparison:
    """One run of a plan."""

    def __init__(self, plan: Plan, entries: Sequence[Entry], progress: Progress) -> None:
        self._plan, self._entries, self._progress = plan, entries, progress
        self.records: list[Record] = []

    def run(self) -> None:
        """All rounds."""
        num_checks = 2 if self._plan.checks_agreement else 0
        self._progress.expect(num_checks + sum(len(measures) for _, measures, _ in self._rounds()))
        for entry, measures, round_ in self._rounds():
            self._run_round(entry, measures, round_)

    def _rounds(self) -> Iterator[tuple[Entry, list[Measure], int]]:
        for round_ in range(1, max(entry.num_rounds for entry in self._entries) + 1):
            for entry in self._entries:
                measures = [measure for measure in entry.measures if round_ == 1 or not measure.is_once]
                if round_ <= entry.num_rounds and measures:
                    yield entry, measures, round_

    def _run_round(self, entry: Entry, measures: Sequence[Measure], round_: int) -> None:
        """Start, warm up, measure, stop."""
        contender, say = entry.contender, self._progress.line
        prefix = f"round {round_}/{entry.num_rounds}, {contender.name}"
        say(f"{prefix}: starting")
        with contender.running() as server:
            # As many as will ask at once: a server in use has the template's opening in its prompt cache.
            most = max(measure.num_clients for measure in measures)
            is_slow = all(measure.group == "shipped" for measure in measures)
            warm_up(server, 1 if is_slow else max(NUM_WARM_UP_ASKS, most))
            say(f"{prefix}: ready and warm")
            for measure in measures:
                record = run_measure(server, contender, measure, round_, entry.questions)
                self.records.append(record)
                figure = format_figure(record.figure, measure.unit)
                self._progress.done(f"{prefix}: {measure.title}: {figure}")

    def check_agreement(self, ours: Ours, questions: Questions) -> Agreement | None:
        """Ask what was asked in parallel again, one at a time, and compare; None where nothing was."""
        greedy = [
            record
            for record in self.records
            if record.contender == ours.name
            and record.measure.group == "throughput"
            and not record.summary.num_failed
        ]
        if not greedy:
            return None
        record = max(greedy, key=lambda record: (record.measure.num_clients, record.round))
        # Spread over all of them, so that every microbatch has some.
        every = slice(None, None, max(1, record.measure.num_asks // AGREEMENT_ANSWERS))
        asks = questions.asks_of(record.measure, record.round)[every]
        self._progress.line(f"{len(asks)} of the parallel answers of ours again, one at a time")
        solo = ask_alone(ours, asks)
        self._progress.done("the same ones against mlx-lm's own model")
        agreement = check_agreement(questions.ground, asks, record.result.replies[every], solo)
        self._progress.done("all is measured")
        return agreement


def run_comparison(plan: Plan, progress: Progress, *, as_json: bool) -> int:
    """Run the plan, print the report; 0 if all was answered and nothing was mixed up, else 1."""
    started_unix = time.time()
    ground = make_ground()
    with only_one(ground):
        quiet = describe_busy(busy_ratio())
        entries = make_entries(plan, ground)
        if not entries:
            raise BenchError(f"nothing to measure of {', '.join(plan.only)}")
        comparison = Comparison(plan, entries, progress)
        comparison.run()
        agreement = None
        if plan.checks_agreement:
            agreement = comparison.check_agreement(Ours(ground), Questions(ground, plan.seed))
    data = {
        "kind": "compare",
        "started_unix": started_unix,
        "duration_s": time.time() - started_unix,
        "command": "./launch.sh bench " + " ".join(sys.argv[1:]),
        "plan": asdict(plan),
        "machine": describe_machine(),
        "model": ground.settings.model_name,
        "num_ranks": ground.num_ranks,
        "contenders": _describe_contenders(entries),
        "agreement": None if agreement is None else {**asdict(agreement), "lines": agreement.lines()},
        "records": [to_data(record) for record in comparison.records],
    }
    held = {"ratios": ratios(data, OURS, PEER), "ratios_to_default_flags": ratios(data, OURS, DEFAULT_PEER)}
    data = plain({**data, **held})
    data["doubts"] = [*([quiet] if quiet else []), *find_doubts(data, OURS, (PEER, DEFAULT_PEER))]
    path = write_run(ground.folder, "compare", data)
    if as_json:
        sys.stdout.write(path.read_text(encoding="utf-8") + "\n")
    else:
        print("\n" + "\n".join(describe_run(data, OURS)))
        print(f"\nRaw data: {path}")
    has_failed = any(record.summary.num_failed for record in comparison.records)
    return 1 if has_failed or (agreement is not None and not agreement.is_good) else 0


def _describe_contenders(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """One for each name; the mixture of experts has the same ones."""
    found = {entry.contender.name: dict(entry.contender.describe()) for entry in reversed(entries)}
    return list(reversed(found.values()))
