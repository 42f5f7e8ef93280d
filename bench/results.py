"""Result files: STATE_DIR/bench/KIND-TIME.jsonl, one row a line, so that diffs are readable.

    {"kind", "started_unix", "command", "machine", "doubts", "model", "num_ranks", "servers": [{"name",
     "num_ranks", "blas", "settings"}]}
    {"measure", "title", "unit", "server", "rounds": [figure, …], "ttft_ms": [p50, p95, p99], "gap_ms",
     "total_ms", "cached"}

These are the rows of `compare`; `simulated` has one for each ring. Numbers have six digits; null stands for
a figure that was not measured. Reports need only these files. Knows nothing of measuring.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.load import short
from bench.machine import describe_busy, describe_machine
from bench.measures import Measure, Outcome
from bench.setup import BenchError

Row = dict[str, Any]


@dataclass(frozen=True)
class ResultFile:
    """One run: machine and servers, and its rows."""

    head: Mapping[str, Any]
    rows: Sequence[Row]


def make_head(kind: str) -> dict[str, Any]:
    """The first line of a file, as a run begins; the run adds model and servers, and its doubts."""
    return {
        "kind": kind,
        "started_unix": round(time.time()),
        "command": f"./launch.sh bench {' '.join(sys.argv[1:])}",
        "machine": describe_machine(),
        "doubts": describe_busy(),
    }


def make_row(measure: Measure, server: str, outcomes: Sequence[Outcome]) -> Row:
    """All rounds of a measure on a server; percentiles are medians over the rounds."""
    summaries = [outcome.summary for outcome in outcomes]
    latencies = {
        name: [
            short(median(values)) for values in zip(*(getattr(each, name) for each in summaries), strict=True)
        ]
        for name in ("ttft_ms", "gap_ms", "total_ms")
    }
    return {
        "measure": measure.name,
        "title": measure.title,
        "unit": measure.unit,
        "server": server,
        "rounds": [short(outcome.figure) for outcome in outcomes],
        **latencies,
        "cached": short(median(each.cached_ratio for each in summaries)),
    }


def median(values: Iterable[float | None]) -> float:
    """The median; NaN without values, or if one is missing."""
    taken = [math.nan if value is None else value for value in values]
    return statistics.median(taken) if taken and not any(map(math.isnan, taken)) else math.nan


def write_results(path: Path, results: ResultFile) -> None:
    """Write a file, one row a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(line, ensure_ascii=False) for line in (results.head, *results.rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_results(path: Path) -> ResultFile:
    """Read what `write_results` wrote.

    Raises:
        BenchError: the file has another form.
    """
    try:
        head, *rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
        return ResultFile({**head, "kind": str(head["kind"])}, rows)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BenchError(f"{path} is not a result file of ./launch.sh bench: {error!r}") from None
