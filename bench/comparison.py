"""The comparison: ours and mlx_lm.server in one run, in turn, each stopped while another is timed.

Each round starts a server, warms it up, runs its measures, and stops it; figures are medians over rounds.
The peer runs with its best and with its default flags (peers.py). `peers` measures it alone, `mixture`
measures all on a random mixture of experts (random_model.py).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from bench.load import warm_up
from bench.measures import Measure, Outcome, make_measures, run_measure
from bench.peers import Peer
from bench.random_model import make_random_model
from bench.report import finish_run, format_figure
from bench.results import ResultFile, make_head, make_row
from bench.service import Service
from bench.setup import Setup, fill, make_setup, only_run, say

NUM_WARM_UP_ASKS = 2
ENOUGH = 0.9  # of the tokens asked for; fewer raise a doubt
MIXTURE_SETTINGS = {"MAX_SEQUENCE_LENGTH": "16384"}


@dataclass(frozen=True)
class Plan:
    """What to compare, and how often."""

    command: str  # compare, peers or mixture
    clients: tuple[int, ...]
    max_tokens: int
    prompt_tokens: tuple[int, ...]
    num_rounds: int
    seed: int
    kinds: tuple[str, ...]
    with_peers: bool


def run(options: argparse.Namespace) -> int:
    """Compare and print the report; 0 if every request was answered, else 1."""
    plan, setup = fill(Plan, options), make_setup()
    measures = make_measures(plan.kinds, plan.clients, plan.max_tokens, plan.prompt_tokens)
    with only_run(setup):
        head = make_head("mixture" if plan.command == "mixture" else "compare")
        if plan.command == "mixture":
            setup = replace(setup, model_folder=make_random_model(setup))
        servers = make_servers(plan, setup)
        outcomes = run_rounds(plan, servers, measures, head["doubts"])
    rows = [
        make_row(measure, server.name, outcomes[measure.name, server.name])
        for measure in measures
        for server in servers
    ]
    described = [server.describe() for server in servers]
    head |= {"model": setup.model_folder.name, "num_ranks": setup.num_ranks, "servers": described}
    finish_run(setup.folder, ResultFile(head, rows), as_json=options.json)
    return 1 if any(outcome.errors for found in outcomes.values() for outcome in found) else 0


def make_servers(plan: Plan, setup: Setup) -> list[Service | Peer]:
    """The servers to compare."""
    ours = Service(setup, MIXTURE_SETTINGS if plan.command == "mixture" else None)
    most = max(plan.clients)
    peers = [Peer(setup, most), Peer(setup, most, has_default_flags=True)]
    return [*([ours] if plan.command != "peers" else []), *(peers if plan.with_peers else [])]


def run_rounds(
    plan: Plan, servers: Sequence[Service | Peer], measures: Sequence[Measure], doubts: list[str]
) -> dict[tuple[str, str], list[Outcome]]:
    """Start, warm up, measure and stop each server in each round; add reasons for doubt to `doubts`."""
    outcomes: dict[tuple[str, str], list[Outcome]] = {}
    for round_ in range(1, plan.num_rounds + 1):
        for server in servers:
            prefix = f"round {round_}/{plan.num_rounds}, {server.name}"
            say(f"{prefix}: starting")
            with server.running() as address:
                # As many as ask at once later, so that the prompt cache has the template's opening.
                warm_up(address, max(NUM_WARM_UP_ASKS, *(measure.num_clients for measure in measures)))
                say(f"{prefix}: ready and warm")
                for measure in measures:
                    outcome = run_measure(measure, address, seed=plan.seed, round_=round_)
                    outcomes.setdefault((measure.name, server.name), []).append(outcome)
                    title = f"{prefix}: {measure.title}"
                    doubts += [f"{title}: {doubt}" for doubt in find_doubts(measure, outcome)]
                    say(f"{title}: {format_figure(outcome.figure, measure.unit)}")
    return outcomes


def find_doubts(measure: Measure, outcome: Outcome) -> list[str]:
    """Reasons to doubt a figure."""
    summary = outcome.summary
    if outcome.errors:
        return [f"{summary.num_failed} of {summary.num_asks} failed: {outcome.errors[0]}"]
    if math.isnan(outcome.figure):
        return ["no figure"]
    if measure.num_tokens and summary.completion_tokens < ENOUGH * measure.num_tokens:
        return [f"only {summary.completion_tokens} of {measure.num_tokens} tokens: answers ended early"]
    return []
