"""Records into tables for a terminal: medians over rounds, and how many times better ours is.

Pure: strings out. In every row a ratio above 1 means that ours is better, also where less is better.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bench.records import Record
from bench.summary import Percentiles, Summary, median
from bench.workload import Measure
from cluster.terminal import make_table


def measures_of(records: Sequence[Record]) -> list[Measure]:
    """Each measure once, in the order they were first run."""
    return list(dict.fromkeys(record.measure for record in records))


def median_of(
    records: Sequence[Record], contender: str, measure: Measure, pick: Callable[[Summary], float]
) -> float:
    """The median over rounds of one figure; NaN where the contender did not run the measure."""
    return median(
        pick(record.summary)
        for record in records
        if record.contender == contender and record.measure == measure
    )


def figure_of(measure: Measure) -> Callable[[Summary], float]:
    """What a measure is judged by: tokens a second, or the time to the first token."""
    return (lambda summary: summary.ttft_s.p50) if measure.is_long else (lambda summary: summary.tokens_per_s)


def ratio_of(records: Sequence[Record], measure: Measure, ours: str, peer: str) -> float:
    """How many times better ours is; NaN where there is nothing to compare, or an ask failed."""
    if any(record.summary.num_failed for record in records if record.measure == measure):
        return math.nan
    mine, theirs = (median_of(records, name, measure, figure_of(measure)) for name in (ours, peer))
    better, worse = (theirs, mine) if measure.is_long else (mine, theirs)
    return better / worse if worse else math.nan


def sampled_ratio(records: Sequence[Record], contender: str) -> float:
    """Tokens a second with sampling, as a share of greedy with as many clients; NaN where one is missing."""
    for measure in measures_of(records):
        if measure.is_sampled:
            greedy = [
                other
                for other in measures_of(records)
                if not other.is_sampled and not other.is_long and other.num_clients == measure.num_clients
            ]
            if greedy:
                pick = figure_of(measure)
                base = median_of(records, contender, greedy[0], pick)
                return median_of(records, contender, measure, pick) / base if base else math.nan
    return math.nan


def make_figures_table(records: Sequence[Record], ours: str, peer: str) -> list[str]:
    """The main table."""
    rows = [("measure", ours, peer, "ours is better by")]
    for measure in measures_of(records):
        unit = "s" if measure.is_long else "tokens/s"
        pick = figure_of(measure)
        cells = [format_figure(median_of(records, name, measure, pick), unit) for name in (ours, peer)]
        if measure.is_sampled:
            ratio = f"({format_ratio(sampled_ratio(records, ours))} of ours greedy)"
        else:
            ratio = format_ratio(ratio_of(records, measure, ours, peer))
        rows.append((measure.title, cells[0], cells[1], ratio))
    return make_table(rows)


def make_latency_table(records: Sequence[Record], names: Sequence[str]) -> list[str]:
    """Percentiles of each latency, in milliseconds, and how much of the prompts came from a prompt cache."""
    rows: list[tuple[str, ...]] = [
        (
            "measure",
            "server",
            "TTFT p50/p95/p99 ms",
            "inter-token p50/p95/p99 ms",
            "end p50/p95/p99 ms",
            "prompt tokens cached",
        )
    ]
    picks: tuple[Callable[[Summary], Percentiles], ...] = (
        lambda summary: summary.ttft_s,
        lambda summary: summary.gap_s,
        lambda summary: summary.end_to_end_s,
    )
    for measure in measures_of(records):
        for name in names:
            if any(record.contender == name and record.measure == measure for record in records):
                cells = [_format_percentiles(records, name, measure, pick) for pick in picks]
                cached = median_of(records, name, measure, lambda summary: summary.cached_ratio)
                rows.append((measure.title, name, *cells, f"{cached:.0%}"))
    return make_table(rows)


def _format_percentiles(
    records: Sequence[Record], name: str, measure: Measure, pick: Callable[[Summary], Percentiles]
) -> str:
    shares: tuple[Callable[[Percentiles], float], ...] = (
        lambda found: found.p50,
        lambda found: found.p95,
        lambda found: found.p99,
    )
    figures = []
    for share in shares:
        of_summary = _after(pick, share)
        figures.append(median_of(records, name, measure, of_summary))
    return " / ".join("-" if math.isnan(figure) else f"{figure * 1000:.0f}" for figure in figures)


def _after(
    pick: Callable[[Summary], Percentiles], share: Callable[[Percentiles], float]
) -> Callable[[Summary], float]:
    return lambda summary: share(pick(summary))


def find_doubts(records: Sequence[Record], ours: str, peer: str) -> list[str]:
    """What makes a figure doubtful: failed asks, unequal prompts, answers that ended early."""
    doubts = []
    for measure in measures_of(records):
        there = [record for record in records if record.measure == measure]
        for record in there:
            if record.summary.num_failed:
                errors = [reply.error for reply in record.result.replies if reply.error]
                doubts.append(
                    f"{measure.title}, {record.contender}, round {record.round}: "
                    f"{record.summary.num_failed} of {record.summary.num_asks} failed: {errors[0]}"
                )
            wanted = record.summary.num_asks * measure.max_tokens
            if not record.summary.num_failed and record.summary.completion_tokens < 0.9 * wanted:
                doubts.append(
                    f"{measure.title}, {record.contender}, round {record.round}: only "
                    f"{record.summary.completion_tokens} of {wanted} tokens, answers ended early"
                )
        prompts = {record.contender: record.summary.prompt_tokens for record in there if record.round == 1}
        if ours in prompts and peer in prompts and prompts[ours] != prompts[peer]:
            doubts.append(f"{measure.title}: prompts have {prompts[ours]} tokens here, {prompts[peer]} there")
    return doubts


def describe_ground(machine: Mapping[str, Any], model: str, num_ranks: int) -> list[str]:
    """Machine, versions and model in three lines."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    commit = f", this project at {machine['commit']}" if machine["commit"] else ""
    return [
        f"Machine: {machine['processor']}, {machine['num_cores']} cores, {machine['memory_gb']} GB, "
        f"{machine['system']}",
        f"Versions: Python {machine['python']}, {versions}{commit}",
        f"Model: {model}, {num_ranks} ranks on this machine",
    ]


def describe_contender(described: Mapping[str, Any]) -> list[str]:
    """A contender's BLAS and every setting that was chosen for it, with the reason."""
    chosen = described.get("overrides") or described.get("flags") or {}
    lines = [f"{described['name']}: BLAS {described['blas'] or 'of the system'}; settings chosen for it:"]
    return lines + [f"    {key}={entry['value']}  ({entry['reason']})" for key, entry in chosen.items()]


def format_figure(value: float, unit: str) -> str:
    """`83.1 tokens/s`, `5.31 s`, `-`."""
    if math.isnan(value):
        return "-"
    return f"{value:.2f} {unit}" if unit == "s" else f"{value:.1f} {unit}"


def format_ratio(value: float) -> str:
    """`2.94 x`, `-`."""
    return "-" if math.isnan(value) else f"{value:.2f} x"
