"""The pictures of docs/benchmarks.md, from the same raw data as its tables. Needs matplotlib.

Knows raw data and files; nothing of how anything was measured.
"""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

from bench.goals import Runs
from bench.names import OURS
from bench.plots import PALETTE, new_figure, save_figure
from bench.report import Run, busy_of, contenders_of, figure, measures_of, records_of
from bench.timeline import read_spans
from bench.timeline_picture import draw_timeline


def draw_all(runs: Runs, steps: Any, folder: Path) -> None:
    """Draw what there is data for."""
    if "compare" in runs:
        run = runs["compare"]
        draw_curves(run, "greedy-", "clients", "tokens/s", folder / "throughput.svg")
        draw_curves(run, "prompt-", "tokens of the prompt", "s to the first token", folder / "ttft.svg")
        draw_latency(run, folder / "latency.svg")
    draw_busy(runs, folder / "busy.svg")
    if steps is not None:
        draw_timeline(read_spans(steps), len(steps["ranks"]), folder / "timeline.svg", "simulated ring")


def curves_of(run: Run, prefix: str) -> dict[str, list[tuple[int, float]]]:
    """By contender: (number in the measure's name, figure)."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for measure in measures_of(run):
        if measure.startswith(prefix):
            for contender in contenders_of(run, measure):
                value = figure(run, measure, contender)
                if not math.isnan(value):
                    number = int(measure.removeprefix(prefix))
                    curves.setdefault(contender, []).append((number, value))
    return {name: sorted(points) for name, points in curves.items()}


def draw_curves(run: Run, prefix: str, across: str, up: str, path: Path) -> None:
    """A line a contender."""
    curves = curves_of(run, prefix)
    if not curves:
        return
    drawing, axes = new_figure(width=7, height=3.6)
    for color, (name, points) in zip(PALETTE, curves.items(), strict=False):
        numbers, values = zip(*points, strict=True)
        axes.plot(numbers, values, marker="o", color=color, label=name)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    save_figure(drawing, path)


def draw_latency(run: Run, path: Path) -> None:
    """Share of all gaps between tokens that are no longer, at the most clients."""
    loads = [measure for measure in measures_of(run) if measure.startswith("greedy-")]
    if not loads:
        return
    measure = max(loads, key=lambda name: int(name.removeprefix("greedy-")))
    drawing, axes = new_figure(width=7, height=3.6)
    for color, contender in zip(PALETTE, contenders_of(run, measure), strict=False):
        gaps = sorted(
            after - before
            for record in records_of(run, measure, contender)
            for reply in record["replies"]
            for before, after in pairwise(reply["text_times_s"])
        )
        if gaps:
            shares = [(index + 1) / len(gaps) for index in range(len(gaps))]
            axes.plot([gap * 1000 for gap in gaps], shares, color=color, label=contender)
    axes.set_xscale("log")
    axes.set_xlabel("ms between two tokens")
    axes.set_ylabel("share of all gaps")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    save_figure(drawing, path)


def draw_busy(runs: Runs, path: Path) -> None:
    """A bar a rank: the real ring, then the simulated ones."""
    groups: list[tuple[str, list[float]]] = []
    if "compare" in runs and busy_of(runs["compare"], OURS):
        groups.append(("real", busy_of(runs["compare"], OURS)))
    rings = runs["simulated"]["rings"] if "simulated" in runs else []
    groups += [(f"simulated, {ring['num_ranks']}", list(ring["busy"])) for ring in rings]
    if not groups:
        return
    drawing, axes = new_figure(width=7, height=3.2)
    place, ticks, labels = 0.0, [], []
    for color, (name, shares) in zip(PALETTE, groups, strict=False):
        places = [place + rank for rank in range(len(shares))]
        axes.bar(places, shares, color=color, label=name)
        ticks += places
        labels += [str(rank) for rank in range(len(shares))]
        place += len(shares) + 1
    axes.set_xticks(ticks, labels)
    axes.set_xlabel("rank")
    axes.set_ylabel("busy")
    axes.set_ylim(0, 1)
    axes.legend(frameon=False, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    save_figure(drawing, path)
