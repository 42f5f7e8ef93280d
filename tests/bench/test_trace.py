"""Traces: what rank 0 records of its steps, and the timeline that is made of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import step_record
from bench.command_line import make_parser
from bench.picture import choose_spans, draw_timeline
from bench.simulated import decode_rate, full_window, most_rows
from bench.timeline import (
    WRAP,
    busy_shares,
    clock_offsets,
    describe_trace,
    lap_order,
    make_chrome_trace,
    read_spans,
)
from bench.trace import MAX_SECONDS
from config.run_files import read_json, write_json
from distributed.engine import step_trace
from distributed.engine.sequence import Microbatch, Row, Sequence
from distributed.engine.step_trace import RECORD_NAME, REQUEST_NAME, StepTrace
from distributed.ring.frame import Frame, Kind
from distributed.ring.handshake import RankInfo

HOP_US, BUSY_US = 300, 1000
INFOS = tuple(RankInfo(rank, "h", 1, 2 - 2 * rank, 2, 0, 0, 0, 0.0, "cpu") for rank in range(2))


def make_record(hosts: list[str], clocks: list[int], num_steps: int = 8, **changes: Any) -> dict[str, Any]:
    """A record of even steps, one at a time round the ring, as ranks with such clocks would tell it.

    Args:
        clocks: what each rank's clock shows when rank 0's shows 0; rank 0's own is 0.
    """
    num_ranks, steps, now = len(hosts), [], 5_000_000
    for number in range(1, num_steps + 1):
        sent_us, start_us = now, [0] * num_ranks
        for rank in lap_order(num_ranks):
            now += HOP_US
            start_us[rank] = now + clocks[rank] if rank == 0 else (now + clocks[rank]) % WRAP
            now += BUSY_US
        kind = {"table": number % 2, "is_prefill": number <= 2, "num_rows": 3, "num_tokens": 3}
        times = {"sent_us": sent_us, "start_us": start_us, "busy_us": [BUSY_US] * num_ranks}
        steps.append({"step": number, **kind, **times, **changes})
    ranks = [
        {"rank": rank, "host": host, "first_layer": 2 * (num_ranks - 1 - rank), "num_layers": 2}
        for rank, host in enumerate(hosts)
    ]
    return {"id": "x", "epoch": 1, "begin_us": 5_000_000, "end_us": now, "ranks": ranks, "steps": steps}


@given(
    st.sampled_from(["abc", "abb", "aab", "aba"]), st.integers(-(10**9), 10**9), st.integers(-(10**9), 10**9)
)
def test_clocks_of_other_hosts_are_found_from_the_lap(hosts: str, one: int, two: int) -> None:
    """Whatever they show and however often they wrapped: hops of equal length come out exactly."""
    record = make_record(list(hosts), [{"a": 0, "b": one, "c": two}[host] for host in hosts])
    first = [span.start_us for span in read_spans(record)[:3]]
    assert first == [HOP_US, 2 * HOP_US + BUSY_US, 3 * HOP_US + 2 * BUSY_US]


def test_ranks_of_one_host_share_a_clock() -> None:
    """Nothing is worked out where nothing has to be; a wrap in the middle of a record does not show."""
    record = make_record(["a", "a"], [0, 0])
    for step in record["steps"]:
        step["sent_us"] += WRAP - 5_010_000
        step["start_us"] = [step["start_us"][0] + WRAP - 5_010_000, (step["start_us"][1] - 5_010_000) % WRAP]
    record["begin_us"] += WRAP - 5_010_000
    assert [span.start_us for span in read_spans(record)[:2]] == [HOP_US, 2 * HOP_US + BUSY_US]
    assert clock_offsets(["a", "a"], record["steps"], []) == [0, 0]


def test_shares_and_rates_are_of_the_window_they_are_asked_for() -> None:
    """One step at a time keeps each of two ranks busy less than half of the time."""
    record = make_record(["a", "a"], [0, 0])
    spans = read_spans(record)
    lap_us = 2 * (HOP_US + BUSY_US)
    length_us = record["end_us"] - record["begin_us"]
    assert busy_shares(spans, 2, 0, length_us) == pytest.approx([BUSY_US / lap_us] * 2)
    assert most_rows(spans) == 6
    window = full_window(spans, 6)
    assert window == (4 * lap_us, 8 * lap_us)
    assert decode_rate(spans, *window) == pytest.approx(3e6 / lap_us)
    assert full_window(spans, 7) is None
    assert describe_trace(record, spans)[1] == ("0", "a", "2-3", "38.5%", "9.6%", "28.8%", "8")


def test_the_timeline_is_what_viewers_of_chrome_traces_read() -> None:
    """A named row a rank with the first stage on top, an event a step and rank, prefill told from decode."""
    record = make_record(["a", "a"], [0, 0])
    trace = json.loads(json.dumps(make_chrome_trace(record, read_spans(record))))
    spans = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert len(spans) == 16
    assert {event["name"] for event in spans if event["cat"] == "decode"} == {"decode 0", "decode 1"}
    assert {event["name"] for event in spans if event["cat"] == "prefill"} == {"prefill 1", "prefill 2"}
    assert spans[0]["args"] == {"step": 1, "table": 1, "rows": 3, "tokens": 3}
    named = {event["tid"]: event for event in trace["traceEvents"] if event["name"] == "thread_sort_index"}
    assert named[1]["args"]["sort_index"] < named[0]["args"]["sort_index"]


def test_an_idle_service_has_an_empty_timeline() -> None:
    """Nothing to draw is no error."""
    record = make_record(["a", "b"], [0, 0], num_steps=0)
    assert read_spans(record) == []
    assert make_chrome_trace(record, [])["displayTimeUnit"] == "ms"
    assert most_rows([]) == 0
    assert choose_spans([]) == []
    assert "rank 1" in draw_timeline([], 2)


def test_a_picture_shows_steps_around_the_last_chunk_of_a_prompt() -> None:
    """And the middle of what has no chunk."""
    spans = read_spans(make_record(["a"], [0], num_steps=200))
    picture = ElementTree.fromstring(draw_timeline(spans, 1))
    assert len([box for box in picture if box.find("{*}title") is not None]) == 60
    assert [span.step for span in choose_spans(spans)] == list(range(1, 61))
    late = [replace(span, is_prefill=span.step in (3, 120)) for span in spans]
    assert [span.step for span in choose_spans(late)] == list(range(90, 150))
    none = [replace(span, is_prefill=False) for span in spans]
    assert [span.step for span in choose_spans(none)] == list(range(71, 131))


def make_step(number: int) -> tuple[Microbatch, Frame]:
    """A decode group of one row, and its frame with rank 1's times."""
    sequence = Sequence("s", [1, 2], 1, 8)
    microbatch = Microbatch(number, 0, (Row(sequence, 0, 1, (2,)),), wants_logits=True)
    times = np.zeros(32, np.int32)
    return microbatch, Frame(Kind.STEP, 1, step=number, times=times).with_times(1, 1234, 50)


@pytest.mark.parametrize("seconds", ["no request", -1, 10**9, "5", None, [1]])
def test_nothing_is_recorded_without_a_good_request(tmp_path: Path, seconds: object) -> None:
    """No file is written; a file that anybody can drop there is taken away, and stops no ring."""
    trace = StepTrace(tmp_path, 1, 2)
    if seconds != "no request":
        write_json(tmp_path / REQUEST_NAME, {"id": "x", "seconds": seconds})
    trace.tick(INFOS)
    trace.sent(1)
    trace.finished(*make_step(1), 5)
    trace.tick(INFOS)
    assert list(tmp_path.iterdir()) == []


def test_a_record_holds_the_steps_between_request_and_end(tmp_path: Path) -> None:
    """A new request ends it, one of 0 seconds does only that; what was on its way before is left out."""
    trace = StepTrace(tmp_path, 7, 2)
    trace.sent(1)
    write_json(tmp_path / REQUEST_NAME, {"id": "mine", "seconds": 500})
    trace.tick(INFOS)
    trace.finished(*make_step(1), 5)
    trace.sent(2)
    trace.finished(*make_step(2), 5)
    assert not (tmp_path / REQUEST_NAME).exists()
    assert read_json(tmp_path / RECORD_NAME) is None
    write_json(tmp_path / REQUEST_NAME, {"id": "", "seconds": 0})
    trace.tick(INFOS)
    record = read_json(tmp_path / RECORD_NAME)
    assert record is not None
    assert (record["id"], record["epoch"]) == ("mine", 7)
    assert [entry["rank"] for entry in record["ranks"]] == [0, 1]
    (step,) = record["steps"]
    assert (step["step"], step["num_rows"], step["start_us"], step["busy_us"][1]) == (2, 1, [5, 1234], 50)
    trace.finished(*make_step(3), 5)
    trace.tick(INFOS)
    assert read_json(tmp_path / RECORD_NAME) == record


def test_both_sides_mean_the_same_files() -> None:
    """Whoever asks and rank 0, which do not import each other."""
    assert (step_record.REQUEST_NAME, step_record.RECORD_NAME) == (REQUEST_NAME, RECORD_NAME)
    assert MAX_SECONDS == step_trace.MAX_SECONDS


def test_seconds_are_within_what_rank_0_records(capsys: pytest.CaptureFixture[str]) -> None:
    """Anything else is refused before anybody is asked."""
    assert make_parser().parse_args(["trace", "2.5"]).seconds == 2.5
    for words in (["0"], ["601"], ["x"], [], ["1", "--picture", "x.png"]):
        with pytest.raises(SystemExit) as ended:
            make_parser().parse_args(["trace", *words])
        assert ended.value.code == 2
    assert "at most 600" in capsys.readouterr().err
