"""What was promised, as data: each goal, wanted and hoped, and how it is read from raw data. Pure.

Most goals are ratios to the peer, which runs twice: with its own default flags, as the promises were meant,
and with the flags that are best for it. Both ratios stand in the table, each with its verdict.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bench.names import BLAS_ALONE, DEFAULT_PEER, DRAFTS, OURS, PEER
from bench.report import Run, busy_of, ratio, sampled_ratio, second_turn_ratio

Runs = Mapping[str, Run]  # by kind: "compare", "simulated"


Read = Callable[[Runs], float]


@dataclass(frozen=True)
class Goal:
    """A measure and what it must reach; `read` gives NaN where the raw data does not have it."""

    title: str
    wanted: float
    hoped: float
    read: Read


@dataclass(frozen=True)
class PeerGoal:
    """A ratio to the peer that must be reached."""

    title: str
    wanted: float
    hoped: float
    measure: str
    ours: str = OURS

    def read(self, runs: Runs, peer: str, ours: str | None = None) -> float:
        """The ratio of ours, or another of ours, to a peer; NaN where either was not measured."""
        if "compare" not in runs:
            return math.nan
        return ratio(runs["compare"], self.measure, ours or self.ours, peer)


def _of_compare(read: Callable[[Run], float]) -> Read:
    return lambda runs: read(runs["compare"]) if "compare" in runs else math.nan


def _simulated(num_ranks: int) -> Read:
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


PEER_GOALS = (
    PeerGoal("aggregate, 32 clients", 2.4, 4, "greedy-32"),
    PeerGoal("aggregate, 8 clients", 1.5, 2.5, "greedy-8"),
    PeerGoal("one stream, chat, no speculation", 1.15, 1.6, "greedy-1"),
    PeerGoal("one stream, code editing, speculation", 2, 4, "edits", DRAFTS),
    PeerGoal("time to first token of 1,350 tokens", 2.1, 3.5, "prompt-1350"),
    PeerGoal("worst gap of 4 streams while 1,350 tokens arrive", 5, 10, "gap"),
)
GOALS = (
    Goal("second turn of 1,350 tokens, against ours cold", 8, 15, _of_compare(_second_turn)),
    Goal("temperature 0.7, top_p 0.95 of greedy", 0.9, 0.97, _of_compare(_sampled)),
    *(
        Goal(f"simulated stages, {num} even ranks: share of the ideal pipeline", 0.9, 0.97, _simulated(num))
        for num in (2, 4, 8)
    ),
    Goal("busy share of the least busy real stage, 32 clients", 0.85, 0.95, _of_compare(_least_busy)),
)


def peer_goal_rows(runs: Runs) -> list[tuple[str, ...]]:
    """What was promised against the peer: the ratios to it with its default and with its best flags."""
    head = ("measure", "wanted", "hoped", "to its default flags", "", "to its best flags", "")
    rows: list[tuple[str, ...]] = [head]
    for goal in PEER_GOALS:
        values = [goal.read(runs, peer) for peer in (DEFAULT_PEER, PEER)]
        judged = [cell for value in values for cell in _judge(value, goal.wanted)]
        rows.append((goal.title, f"{goal.wanted:g}", f"{goal.hoped:g}", *judged))
    return rows


def blas_alone_rows(runs: Runs) -> list[tuple[str, ...]]:
    """The same ratios of ours without packed weights, as far as measured; the head alone where none was."""
    rows: list[tuple[str, ...]] = [("measure", "wanted", "to its default flags", "to its best flags")]
    for goal in PEER_GOALS:
        values = [goal.read(runs, peer, BLAS_ALONE) for peer in (DEFAULT_PEER, PEER)]
        if not all(math.isnan(value) for value in values):
            cells = ("-" if math.isnan(value) else f"{value:.2f}" for value in values)
            rows.append((goal.title, f"{goal.wanted:g}", *cells))
    return rows


def goal_rows(runs: Runs) -> list[tuple[str, ...]]:
    """What was promised of ours alone."""
    rows: list[tuple[str, ...]] = [("measure", "wanted", "hoped", "measured", "")]
    for goal in GOALS:
        judged = _judge(goal.read(runs), goal.wanted)
        rows.append((goal.title, f"{goal.wanted:g}", f"{goal.hoped:g}", *judged))
    return rows


def _judge(value: float, wanted: float) -> tuple[str, str]:
    """The figure and its verdict."""
    if math.isnan(value):
        return "-", "not measured"
    return f"{value:.2f}", "reached" if value >= wanted else "**falls short**"
