"""The bench's tables and its page: made of result files alone."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from bench.client import Reply
from bench.load import LoadResult, summarize
from bench.measures import Outcome, make_load_measure
from bench.report import (
    PAGE,
    current_page,
    describe,
    figure_rows,
    latency_rows,
    ratio_to_ours,
    write_page,
)
from bench.results import ResultFile, make_row, read_results, write_results
from bench.setup import BenchError

MACHINE = {"processor": "p", "num_cores": 2, "memory_gb": 1.0, "system": "s", "versions": {}, "commit": "abc"}


def make_results(figures: dict[str, list[float]], unit: str = "tokens/s") -> ResultFile:
    """A run with one measure: one good answer of two tokens in each round."""
    measure, rows = make_load_measure("greedy", 8, 64), []
    reply = Reply(sent_s=1.0, text_times_s=[1.1, 1.2], end_s=1.2, usage={"prompt_tokens": 10})
    summary = summarize(LoadResult([reply], 1.0))
    for server, values in figures.items():
        outcomes = [Outcome(summary, value, []) for value in values]
        rows.append({**make_row(measure, server, outcomes), "unit": unit})
    servers = [{"name": name, "num_ranks": 2, "blas": "mkl", "settings": {"A": "b"}} for name in figures]
    head = {"kind": "compare", "started_unix": 0, "command": "c", "machine": MACHINE, "doubts": ["noisy"]}
    return ResultFile({**head, "model": "tiny", "num_ranks": 2, "servers": servers}, rows)


def test_a_ratio_above_one_means_that_ours_is_better() -> None:
    """Of more tokens a second, and of less time to the first; none where a request failed."""
    rows = make_results({"ours": [90, 110, 100], "peer": [50, 40, 60]}).rows
    assert ratio_to_ours(rows[1], rows) == pytest.approx(2.0)
    assert math.isnan(ratio_to_ours(rows[0], rows))
    rows = make_results({"ours": [2.0], "peer": [6.0]}, unit="s").rows
    assert ratio_to_ours(rows[1], rows) == pytest.approx(3.0)
    rows = make_results({"ours": [2.0], "peer": [6.0, math.nan]}).rows
    assert math.isnan(ratio_to_ours(rows[1], rows))


def test_tables_show_every_measure_of_every_server(tmp_path: Path) -> None:
    """From a file, one row a line, without NaN."""
    path = tmp_path / "new" / "kept.jsonl"
    write_results(path, make_results({"ours": [100.0], "peer": [50.0], "other": [math.nan]}))
    for line in path.read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)
    results = read_results(path)
    assert [row[1:] for row in figure_rows(results.rows)[1:]] == [
        ("ours", "100.0 tokens/s", "100", ""),
        ("peer", "50.0 tokens/s", "50", "2.00 x"),
        ("other", "-", "-", ""),
    ]
    hundred = "100 / 100 / 100"
    assert latency_rows(results.rows)[1][2:] == (hundred, hundred, "200 / 200 / 200", "0%")
    shown = describe(results)
    assert "Doubt: noisy" in shown
    assert "peer: 2 ranks; BLAS: mkl; A=b" in shown


def test_the_committed_page_is_what_the_committed_results_make() -> None:
    """`bench report` was run after the last change of either."""
    assert PAGE.read_text(encoding="utf-8") == current_page()


def test_what_is_no_result_is_not_kept(tmp_path: Path) -> None:
    """Named, with the reason; nothing is written."""
    broken, other = tmp_path / "broken.jsonl", tmp_path / "other.jsonl"
    broken.write_text("no JSON")
    other.write_text('{"kind": "other"}\n')
    for path, reason in ((broken, "not a result file"), (other, "of kind other")):
        with pytest.raises(BenchError, match=reason):
            write_page([path])
