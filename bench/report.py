"""Raw data of a run (records.py) into tables: medians over rounds, and how many times better ours is.

Pure: the run's JSON in, strings out; nothing that is not in the raw data can get into a table. In every row a
ratio above 1 means that ours is better, also where less is better.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from bench.summary import median
from cluster.terminal import make_table

Run = Mapping[str, Any]
NEVER = math.nan
LATENCIES = {"TTFT": "ttft_s", "inter-token": "gap_s", "end to end": "end_to_end_s"}


def measures_of(run: Run) -> list[str]:
    """Each measure's name once, in the order they were first run."""
    return list(dict.fromkeys(record["measure"] for record in run["records"]))


def contenders_of(run: Run, measure: str) -> list[str]:
    """Who ran a measure."""
    return list(dict.fromkeys(record["contender"] for record in records_of(run, measure)))


def records_of(run: Run, measure: str, contender: str | None = None) -> list[Mapping[str, Any]]:
    """The records of a measure, of one contender or of all."""
    return [
        record
        for record in run["records"]
        if record["measure"] == measure and contender in (None, record["contender"])
    ]


def figure(run: Run, measure: str, contender: str) -> float:
    """The median over rounds of what a measure is judged by; NaN where it was not run or an ask failed."""
    return median(_number(record["figure"]) for record in records_of(run, measure, contender))


def ratio(run: Run, measure: str, ours: str, peer: str) -> float:
    """How many times better ours is; NaN where there is nothing to compare."""
    mine, theirs = figure(run, measure, ours), figure(run, measure, peer)
    records = records_of(run, measure)
    better, worse = (theirs, mine) if records and records[0]["is_less_better"] else (mine, theirs)
    return better / worse if worse else NEVER


def ratios(run: Run, ours: str, peer: str) -> dict[str, float]:
    """The ratio of every measure that both ran, and what sampling leaves of greedy."""
    found = {measure: ratio(run, measure, ours, peer) for measure in measures_of(run)}
    return {
        **{name: value for name, value in found.items() if peer in contenders_of(run, name)},
        "sampled_of_greedy": sampled_ratio(run, ours),
    }


def sampled_ratio(run: Run, contender: str) -> float:
    """Tokens a second with sampling, as a share of greedy with as many clients; NaN where one is missing."""
    for name in measures_of(run):
        if name.startswith("sampled-"):
            base = figure(run, name.replace("sampled", "greedy"), contender)
            return figure(run, name, contender) / base if base else NEVER
    return NEVER


def second_turn_ratio(run: Run, contender: str) -> float:
    """How many times sooner the second turn's first token comes than that of the same prompt cold."""
    records = records_of(run, "second-turn")
    if not records:
        return NEVER
    cold = figure(run, f"prompt-{records[0]['prompt_tokens']}", contender)
    turn = figure(run, "second-turn", contender)
    return cold / turn if turn else NEVER


def busy_of(run: Run, contender: str) -> list[float]:
    """Busy share of each rank while most streams were decoded, over rounds; empty where not recorded."""
    found = [
        record["extra"]["busy"]
        for record in run["records"]
        if record["contender"] == contender and record.get("extra", {}).get("busy")
    ]
    return [median(shares) for shares in zip(*found, strict=True)] if found else []


def blas_of(run: Run, contender: str) -> str:
    """The BLAS that a contender's ranks said they had loaded."""
    for entry in run["contenders"]:
        if entry["name"] == contender:
            return str(entry["blas"] or "of the system")
    return "-"


def figure_rows(run: Run, ours: str) -> list[tuple[str, ...]]:
    """The main table: a row for each measure and contender, ours first."""
    rows: list[tuple[str, ...]] = [("measure", "server", "BLAS", "median", "all rounds", "ours is better by")]
    for measure in measures_of(run):
        title, unit = _title_unit(run, measure)
        for contender in contenders_of(run, measure):
            value = figure(run, measure, contender)
            rounds = ", ".join(_short(record["figure"]) for record in records_of(run, measure, contender))
            is_ours = contender.startswith(ours)
            held = "" if is_ours else format_ratio(ratio(run, measure, ours, contender))
            rows.append((title, contender, blas_of(run, contender), format_figure(value, unit), rounds, held))
    return rows


def latency_rows(run: Run) -> list[tuple[str, ...]]:
    """Percentiles of each latency, in milliseconds, and how much of the prompts came from a prompt cache."""
    rows: list[tuple[str, ...]] = [
        (
            "measure",
            "server",
            "BLAS",
            *(f"{name} p50/p95/p99 ms" for name in LATENCIES),
            "prompt tokens cached",
        )
    ]
    for measure in measures_of(run):
        title, _ = _title_unit(run, measure)
        for contender in contenders_of(run, measure):
            records = records_of(run, measure, contender)
            cells = [_percentiles(records, name) for name in LATENCIES.values()]
            cached = median(_cached_ratio(record["summary"]) for record in records)
            share = "-" if math.isnan(cached) else f"{cached:.0%}"
            rows.append((title, contender, blas_of(run, contender), *cells, share))
    return rows


def _cached_ratio(summary: Mapping[str, Any]) -> float:
    return summary["cached_tokens"] / summary["prompt_tokens"] if summary["prompt_tokens"] else NEVER


def _percentiles(records: Sequence[Mapping[str, Any]], name: str) -> str:
    found = []
    for share in ("p50", "p95", "p99"):
        value = median(_number(record["summary"][name][share]) for record in records)
        found.append("-" if math.isnan(value) else f"{value * 1000:.0f}")
    return " / ".join(found)


def _title_unit(run: Run, measure: str) -> tuple[str, str]:
    record = records_of(run, measure)[0]
    return str(record["title"]), str(record["unit"])


def find_doubts(run: Run, ours: str, peers: Sequence[str]) -> list[str]:
    """What makes a figure doubtful: failed asks, unequal prompts, answers that ended early."""
    doubts = []
    for record in run["records"]:
        what = f"{record['title']}, {record['contender']}, round {record['round']}"
        summary = record["summary"]
        if summary["num_failed"]:
            reasons = f"{summary['num_failed']} of {summary['num_asks']} failed: {record['errors'][0]}"
            doubts.append(f"{what}: {reasons}")
        num_tokens, wanted = summary["completion_tokens"], summary["num_asks"] * record["max_tokens"]
        if record["kind"] == "load" and not summary["num_failed"] and num_tokens < 0.9 * wanted:
            doubts.append(f"{what}: only {num_tokens} of {wanted} tokens, answers ended early")
        if record.get("extra", {}).get("num_ended_early"):
            doubts.append(f"{what}: a stream had ended before the prompt was read")
    return doubts + [doubt for peer in peers for doubt in _unequal_prompts(run, ours, peer)]


def _unequal_prompts(run: Run, ours: str, peer: str) -> list[str]:
    found = []
    for measure in measures_of(run):
        first = [record for record in records_of(run, measure) if record["round"] == 1]
        prompts = {record["contender"]: record["summary"]["prompt_tokens"] for record in first}
        title, kind = first[0]["title"], first[0]["kind"]
        is_same = prompts.get(ours) == prompts.get(peer)
        if ours in prompts and peer in prompts and not is_same and kind not in ("gap", "second-turn"):
            found.append(f"{title}: prompts have {prompts[ours]} tokens here, {prompts[peer]} on {peer}")
    return found


def describe_run(run: Run, ours: str) -> list[str]:
    """The whole report for a terminal."""
    plan = run["plan"]
    busy = busy_of(run, ours)
    shares = ", ".join(f"rank {rank} {share:.1%}" for rank, share in enumerate(busy))
    return [
        *describe_ground(run["machine"], run["model"], run["num_ranks"]),
        *(line for entry in run["contenders"] for line in describe_contender(entry)),
        f"\nMedians over rounds ({plan['num_rounds']}), one server up at a time; seed {plan['seed']}:\n",
        *make_table(figure_rows(run, ours)),
        "",
        *make_table(latency_rows(run)),
        *([f"\nStages busy while most streams were decoded: {shares}"] if busy else []),
        *(["", *run["agreement"]["lines"]] if run["agreement"] else []),
        *(f"Doubt: {doubt}" for doubt in run["doubts"]),
    ]


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


def _short(value: Any) -> str:
    number = _number(value)
    return "-" if math.isnan(number) else f"{number:.3g}"


def _number(value: Any) -> float:
    """JSON has null for NaN."""
    return NEVER if value is None else float(value)
