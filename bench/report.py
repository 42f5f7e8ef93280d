"""Result files (results.py) as tables, and docs/benchmarks.md, which shows the kept ones.

    docs/benchmarks/compare.jsonl      a run of `bench compare`
    docs/benchmarks/mixture.jsonl      a run of `bench mixture`
    docs/benchmarks/simulated.jsonl    a run of `bench simulated`
    docs/benchmarks/page.md            written by hand, with a $name for each table

A ratio above 1 means that ours is better, whether more or less is better. Knows nothing of measuring.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from bench.results import ResultFile, Row, median, read_results, write_results
from bench.setup import BenchError, say
from cluster.terminal import make_table
from config import REPOSITORY_ROOT

PAGE = REPOSITORY_ROOT / "docs" / "benchmarks.md"
FOLDER = REPOSITORY_ROOT / "docs" / "benchmarks"
KINDS = ("compare", "mixture", "simulated")
OURS = "ours"
LATENCIES = {"TTFT": "ttft_ms", "between tokens": "gap_ms", "whole answer": "total_ms"}


def ratio_to_ours(row: Row, rows: Sequence[Row]) -> float:
    """How many times better ours is in the same measure; NaN without a pair to compare."""
    ours = [each for each in rows if each["measure"] == row["measure"] and each["server"] == OURS]
    if not ours or str(row["server"]).startswith(OURS):
        return math.nan
    mine, theirs = median(ours[0]["rounds"]), median(row["rounds"])
    better, worse = (theirs, mine) if row["unit"] == "s" else (mine, theirs)
    return better / worse if worse else math.nan


def figure_rows(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """The main table: a row for each measure and server."""
    table: list[tuple[str, ...]] = [("measure", "server", "median", "all rounds", "ours is better by")]
    for row in rows:
        rounds = ", ".join("-" if figure is None else f"{figure:.3g}" for figure in row["rounds"])
        ratio = ratio_to_ours(row, rows)
        held = "" if math.isnan(ratio) else f"{ratio:.2f} x"
        figure = format_figure(median(row["rounds"]), row["unit"])
        table.append((row["title"], row["server"], figure, rounds, held))
    return table


def latency_rows(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Percentiles of each latency, and the share of prompt tokens from a prompt cache."""
    heads = (f"{name} p50/p95/p99 ms" for name in LATENCIES)
    table: list[tuple[str, ...]] = [("measure", "server", *heads, "prompt tokens cached")]
    for row in rows:
        cells = (
            " / ".join("-" if ms is None else f"{ms:.0f}" for ms in row[name]) for name in LATENCIES.values()
        )
        cached = "-" if row["cached"] is None else f"{row['cached']:.0%}"
        table.append((row["title"], row["server"], *cells, cached))
    return table


def ring_rows(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """One row a simulated ring."""
    table: list[tuple[str, ...]] = [
        ("ranks", "layers", "streams", "decode tok/s", "ideal", "share", "bubbles", "load tok/s", "TTFT s")
    ]
    for row in rows:
        rates = (f"{row['decode_rate']:.1f}", f"{row['ideal_decode_rate']:.1f}", f"{row['share']:.3f}")
        layers = ",".join(map(str, row["layer_counts"]))
        others = (f"{row['bubbles']:.1%}", f"{row['load_rate']:.1f}", f"{row['ttft_s']:.3f}")
        table.append((str(len(row["layer_counts"])), layers, str(row["num_streams"]), *rates, *others))
    return table


def format_figure(value: float, unit: str) -> str:
    """`83.1 tokens/s`, `5.31 s`, `-`."""
    if math.isnan(value):
        return "-"
    return f"{value:.2f} {unit}" if unit == "s" else f"{value:.1f} {unit}"


def describe_head(head: Mapping[str, Any]) -> list[str]:
    """Machine, versions, model, servers and doubts, a line each."""
    machine = head["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    day = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(head["started_unix"]))
    return [
        f"Machine: {machine['processor']}, {machine['num_cores']} cores, {machine['memory_gb']} GB, "
        f"{machine['system']}",
        f"Versions: {versions}, this project at {machine['commit'] or 'no commit'}",
        f"Model: {head['model']}, {head['num_ranks']} ranks on this machine",
        f"Made on {day} by `{head['command']}`",
        *(describe_server(server) for server in head["servers"]),
        *(f"Doubt: {doubt}" for doubt in head["doubts"]),
    ]


def describe_server(server: Mapping[str, Any]) -> str:
    """A server's ring, BLAS and settings."""
    chosen = " ".join(f"{key}={value}" for key, value in server["settings"].items())
    ranks = "1 rank" if server["num_ranks"] == 1 else f"{server['num_ranks']} ranks"
    return f"{server['name']}: {ranks}; BLAS: {server['blas']}; {chosen}"


def describe(results: ResultFile) -> list[str]:
    """The whole report for a terminal."""
    lines = [line for table in make_tables(results) for line in ("", *make_table(table))]
    return [*describe_head(results.head), *lines]


def make_tables(results: ResultFile) -> list[list[tuple[str, ...]]]:
    """The tables of a run, by its kind."""
    if results.head["kind"] == "simulated":
        return [ring_rows(results.rows)]
    return [figure_rows(results.rows), latency_rows(results.rows)]


def finish_run(folder: Path, results: ResultFile, *, as_json: bool) -> None:
    """Keep a run in a folder under its kind and time; print it as data or as tables."""
    path = folder / f"{results.head['kind']}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.jsonl"
    write_results(path, results)
    print(path.read_text(encoding="utf-8") if as_json else "\n".join(describe(results)))
    say(f"kept in {path}")


def current_page() -> str:
    """Make the page from the files in docs/benchmarks/."""
    parts = {}
    for kind in KINDS:
        results = read_results(FOLDER / f"{kind}.jsonl")
        parts[kind] = "\n".join(f"- {line}" for line in describe_head(results.head))
        names = ("rings",) if kind == "simulated" else (f"{kind}_figures", f"{kind}_latencies")
        parts |= zip(names, map(_markdown, make_tables(results)), strict=True)
    return Template((FOLDER / "page.md").read_text(encoding="utf-8")).substitute(parts)


def run(options: argparse.Namespace) -> int:
    """Write the page; 0."""
    print(write_page(options.files))
    return 0


def write_page(paths: Sequence[Path]) -> Path:
    """Keep these result files instead of the earlier ones, and write the page.

    Raises:
        BenchError: a file has another form, or a kind that the page does not show.
    """
    for path in paths:
        results = read_results(path)
        kind = results.head["kind"]
        if kind not in KINDS:
            raise BenchError(f"{path} is of kind {kind}; the page shows {', '.join(KINDS)}")
        write_results(FOLDER / f"{kind}.jsonl", results)
    PAGE.write_text(current_page(), encoding="utf-8")
    return PAGE


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    head, *body = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
