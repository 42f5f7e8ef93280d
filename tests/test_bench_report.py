"""The bench's tables and its page: made of raw data alone."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.goals import peer_goal_rows
from bench.load import LoadResult
from bench.machine import describe_machine
from bench.measures import Measure, make_measures, make_prompt_measures
from bench.names import DEFAULT_PEER, PEER
from bench.page import PAGE, current_page, keep_run, make_page, read_runs
from bench.records import make_record, write_run
from bench.report import (
    busy_of,
    figure_rows,
    find_doubts,
    latency_rows,
    ratio,
    ratios,
    sampled_ratio,
    second_turn_ratio,
)
from tests.bench_runs import make_records, make_reply, make_run


def test_a_ratio_above_one_means_that_ours_is_better() -> None:
    """Of more tokens a second, and of less time to the first."""
    fast, (long,) = make_measures((8,), 64)[0], make_prompt_measures((1350,))
    run = make_run(make_records({"ours": [90, 110, 100], "peer": [50, 40, 60]}, fast))
    assert ratio(run, "greedy-8", "ours", "peer") == pytest.approx(2.0)
    run = make_run(make_records({"ours": [2.0], "peer": [6.0]}, long))
    assert ratio(run, "prompt-1350", "ours", "peer") == pytest.approx(3.0)
    assert math.isnan(ratio(run, "greedy-8", "ours", "peer"))
    assert ratios(run, "ours", "peer").keys() == {"prompt-1350", "sampled_of_greedy"}


def test_a_second_turn_is_held_against_ours_cold() -> None:
    """Not against the peer."""
    (long,) = make_prompt_measures((1350,))
    turn = Measure("second-turn", 1, 1, 8, kind="second-turn", prompt_tokens=1350)
    run = make_run(make_records({"ours": [6.0]}, long) + make_records({"ours": [0.5]}, turn))
    assert second_turn_ratio(run, "ours") == pytest.approx(12.0)


def test_a_failed_ask_leaves_no_ratio_and_raises_a_doubt() -> None:
    """A server that refuses half its clients is not twice as fast."""
    measure = Measure("greedy-2", 2, 2, 64)
    records = make_records({"ours": [64], "peer": [64]}, measure)
    failed = LoadResult([make_reply([1.1], 64), make_reply([], error="refused")], 1.0)
    run = make_run([*records, make_record(2, "peer", measure, failed)])
    assert math.isnan(ratio(run, "greedy-2", "ours", "peer"))
    assert any("1 of 2 failed: refused" in doubt for doubt in find_doubts(run, "ours", ["peer"]))


def test_tables_show_every_measure_with_the_blas_of_each_row() -> None:
    """Sampled is held against ours greedy; what a peer did not run has no row."""
    greedy, sampled = make_measures((4,), 64)[:2]
    records = make_records({"ours": [100], "peer": [50]}, greedy) + make_records({"ours": [95]}, sampled)
    run = make_run(records)
    assert sampled_ratio(run, "ours") == pytest.approx(0.95)
    head, *rows = figure_rows(run, "ours")
    assert [row[head.index("server")] for row in rows] == ["ours", "peer", "ours"]
    assert {row[head.index("BLAS")] for row in rows} == {"mkl"}
    assert [row[-1] for row in rows] == ["", "2.00 x", ""]
    assert len(latency_rows(run)) == 4


def test_busy_shares_are_medians_over_rounds_by_rank() -> None:
    """Rounds without a record count for nothing."""
    measure = Measure("greedy-4", 4, 4, 64, records_steps=True)
    first, second, third = make_records({"ours": [1, 1, 1]}, measure)
    records = [replace(first, extra={"busy": [0.8, 0.6]}), replace(second, extra={"busy": [0.6, 0.4]}), third]
    assert busy_of(make_run(records), "ours") == pytest.approx([0.7, 0.5])
    assert busy_of(make_run([third]), "ours") == []


def test_the_committed_page_is_what_the_committed_raw_data_make() -> None:
    """`bench report` was run after the last change of either."""
    assert PAGE.read_text(encoding="utf-8") == current_page()


def test_raw_data_without_the_default_flags_is_shown_as_not_measured_against_them() -> None:
    """An old run has the best flags alone; their verdict stays."""
    greedy = make_measures((8,), 64)[0]
    run = make_run(make_records({"ours": [70], PEER: [40]}, greedy))
    (row,) = (row for row in peer_goal_rows({"compare": run}) if row[0] == "aggregate, 8 clients")
    assert row[3:] == ("-", "not measured", "1.75", "reached")


def test_a_failed_gap_is_a_doubt_like_any_other() -> None:
    """What is broken off has no error, so an error there is one."""
    gap = make_measures((1,), 64)[-1]
    failed = LoadResult([make_reply([1.1], 1), make_reply([], error="gone")], 1.0)
    run = make_run([make_record(1, "ours", gap, failed)])
    assert any("1 of 2 failed: gone" in doubt for doubt in find_doubts(run, "ours", ["peer"]))


def test_a_page_tells_what_falls_short_and_what_was_not_measured(tmp_path: Path) -> None:
    """From raw data that went through a file, with notes and pictures only where there are some."""
    greedy = make_measures((8,), 64)[0]
    run = make_run(make_records({"ours": [70, 70], PEER: [50, 50], DEFAULT_PEER: [35, 35]}, greedy))
    plan = {"num_rounds": 2, "seed": 1}
    machine = {**describe_machine(), "commit": "abc"}
    facts = {
        "machine": machine,
        "model": "tiny",
        "num_ranks": 2,
        "plan": plan,
        "command": "./launch.sh bench",
    }
    names = ("ours", PEER, DEFAULT_PEER)
    told: list[Any] = [{"name": name, "blas": "mkl", "num_ranks": 2, "flags": {}} for name in names]
    times = {"started_unix": 0.0, "duration_s": 60.0}
    data = {**run, **facts, **times, "contenders": told, "agreement": None, "doubts": ["noisy"]}
    kept = write_run(tmp_path, "compare", data)
    assert keep_run(kept, tmp_path / "docs") == "compare"
    page = make_page(read_runs(tmp_path / "docs"), "It is slow.", ["busy.svg"])
    assert "| aggregate, 8 clients | 1.5 | 2.5 | 2.00 | reached | 1.40 | **falls short** |" in page
    assert "| aggregate, 32 clients | 2.4 | 4 | - | not measured | - | not measured |" in page
    assert "| temperature 0.7, top_p 0.95 of greedy | 0.9 | 0.97 | - | not measured |" in page
    assert "| 8 parallel x 64 tokens | ours | mkl | 70.0 tokens/s | 70, 70 |  |" in page
    assert f"| 8 parallel x 64 tokens | {DEFAULT_PEER} | mkl | 35.0 tokens/s | 35, 35 | 2.00 x |" in page
    for part in ("It is slow.", "- noisy", "![Busy share of each stage](benchmarks/busy.svg)", "Mac"):
        assert part in page
    assert "latency.svg" not in page
