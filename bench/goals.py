"""What was promised, as data: each goal, wanted and hoped, and how it is read from raw data. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bench.report import Run, busy_of, ratio, sampled_ratio, second_turn_ratio

OURS, DRAFTS, PEER = "ours", "ours, drafts", "mlx_lm.server"
Runs = Mapping[str, Run]  # by kind: "compare", "simulated"


@dataclass(frozen=True)
class Goal:
    """A measure and what it must reach; `read` gives NaN where the raw data does not have it."""

    title: str
    wanted: float
    hoped: float
    read: Callable[[Runs], float]


def _of(measure: str, ours: str = OURS) -> Callable[[Runs], float]:
    return _of_compare(lambda run: ratio(run, measure, ours, PEER))


def _of_compare(read: Callable[[Run], float]) -> Callable[[Runs], float]:
    return lambda runs: read(runs["compare"]) if "compare" in runs else math.nan


def _simulated(num_ranks: int) -> Callable[[Runs], float]:
    def read(runs: Runs) -> float:
        rings: list[dict[str, Any]] = runs["simulated"]["rings"] if "simulated" in runs else []
        found = [ring["shares"]["decode"] for ring in rings if ring["num_ranks"] == num_ranks]
        return float(found[0]) if found else math.nan

    return read


def _second_turn(run: Run) -> float:
    return second_turn_ratio(run, OURS)


def _sampled(run: Run) -> float:
    return sampled_ratio(run, OURS)


def _least_busy(run: Run) -> float:
    return min(busy_of(run, OURS), default=math.nan)


GOALS = (
    Goal("aggregate, 32 clients", 2.4, 4, _of("greedy-32")),
    Goal("aggregate, 8 clients", 1.5, 2.5, _of("greedy-8")),
    Goal("one stream, chat, no speculation", 1.15, 1.6, _of("greedy-1")),
    Goal("one stream, code editing, speculation", 2, 4, _of("edits", DRAFTS)),
    Goal("time to first token of 1,350 tokens", 2.1, 3.5, _of("prompt-1350")),
    Goal("its second turn, against ours cold", 8, 15, _of_compare(_second_turn)),
    Goal("worst gap of 4 streams while 1,350 tokens arrive", 5, 10, _of("gap")),
    Goal("temperature 0.7, top_p 0.95 of greedy", 0.9, 0.97, _of_compare(_sampled)),
    *(
        Goal(f"simulated stages, {num} even ranks: share of the ideal pipeline", 0.9, 0.97, _simulated(num))
        for num in (2, 4, 8)
    ),
    Goal(
        "busy share of the least busy real stage, 32 clients",
        0.85,
        0.95,
        _of_compare(_least_busy),
    ),
)


def goal_rows(runs: Runs) -> list[tuple[str, ...]]:
    """The table of what was promised and what was measured."""
    rows: list[tuple[str, ...]] = [("measure", "wanted", "hoped", "measured", "")]
    for goal in GOALS:
        value = goal.read(runs)
        is_missing = math.isnan(value)
        verdict = "not measured" if is_missing else "reached" if value >= goal.wanted else "**falls short**"
        measured = "-" if is_missing else f"{value:.2f}"
        rows.append((goal.title, f"{goal.wanted:g}", f"{goal.hoped:g}", measured, verdict))
    return rows
