"""The bench's parts without a model: reading streams, loads on fake servers, statistics, judging, tables."""

import json
import math
import random
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.agreement import first_difference, judge
from bench.command_line import make_parser
from bench.contender import ROOT
from bench.dialects import Ask, Dialect, Generate, OpenAIChat, Reply
from bench.http_stream import Event, EventReader
from bench.load import LoadResult, Server, run_load
from bench.machine import describe_busy, describe_machine
from bench.overhead import make_rows, make_sample
from bench.records import Record, make_record, plain, to_data, write_run
from bench.report import find_doubts, make_figures_table, make_latency_table, ratio_of, sampled_ratio
from bench.summary import median, percentile, summarize
from bench.workload import LONG_PROMPT_TOKENS, Measure, make_asks, make_measures, make_prompts
from spool import Result, Usage
from tests.fake_load_server import Crowd, like_ours, like_the_peer, native_events

BODY = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 3}


def read_all(pieces: list[bytes]) -> list[Event]:
    """Feed an event reader."""
    events: list[Event] = []
    reader = EventReader(events.append)
    for number, piece in enumerate(pieces):
        reader.feed(piece, float(number))
    return events


def make_reply(times_s: list[float], num_tokens: int | None = None, error: str | None = None) -> Reply:
    """A reply sent at 1 s with text at these times."""
    usage = {"prompt_tokens": 10} if num_tokens is None else {"completion_tokens": num_tokens}
    end_s = times_s[-1] if times_s else 0.0
    return Reply(sent_s=1.0, text_times_s=times_s, end_s=end_s, usage=usage, error=error)


def make_records(rates: dict[str, list[float]], measure: Measure) -> list[Record]:
    """One record a round, with so many tokens in one second, or for a long one, its TTFT in seconds."""
    records = []
    for name, figures in rates.items():
        for round_, figure in enumerate(figures, start=1):
            times = [1.0 + figure, 1.5 + figure] if measure.is_long else [1.1, 1.2]
            reply = make_reply(times, int(figure))
            records.append(make_record(round_, name, measure, LoadResult([reply], 1.0)))
    return records


@given(st.lists(st.integers(0, 400), max_size=8))
def test_events_are_the_same_wherever_their_bytes_are_cut(cuts: list[int]) -> None:
    """A stream read in any pieces gives the events of the whole."""
    stream = "".join(native_events(BODY)).replace("w0", "é").encode()
    places = sorted({min(cut, len(stream)) for cut in cuts} | {0, len(stream)})
    pieces = [stream[start:end] for start, end in pairwise(places)]
    told = [(event.name, event.data) for event in read_all(pieces)]
    assert told == [(event.name, event.data) for event in read_all([stream])]
    assert [name for name, _ in told] == ["token", "token", "token", "done"]


def test_an_event_carries_the_time_of_its_last_bytes() -> None:
    """Half an event is not there yet."""
    events = read_all([b"data: a\n", b"\ndata: b\r\n\r\n"])
    assert events == [Event(1.0, "message", "a"), Event(1.0, "message", "b")]


@pytest.mark.parametrize("is_ours", [True, False])
def test_a_load_asks_everything_with_so_many_clients_at_once(is_ours: bool) -> None:
    """Every ask is answered, counted by the server's own count, and never more are under way than clients."""
    crowd = Crowd()
    serve = like_ours if is_ours else like_the_peer
    dialect: Dialect = Generate() if is_ours else OpenAIChat()
    asks = [Ask(f"question {number}", max_tokens=5) for number in range(9)]
    with serve(crowd) as port:
        result = run_load(Server("127.0.0.1", port, dialect), asks, 4, limit_s=10.0)
    assert [reply.error for reply in result.replies] == [None] * 9
    for reply in result.replies:
        assert reply.num_tokens == len(reply.text_times_s) == 5
        assert reply.text == "w0 w1 w2 w3 w4 "
        assert (reply.finish_reason, reply.num_cached_tokens) == ("length", 3)
        assert 0 <= reply.sent_s < reply.text_times_s[0] <= reply.end_s <= result.wall_s
        assert reply.token_ids == (list(range(100, 105)) if is_ours else [])
    assert 1 <= crowd.num_most <= 4
    assert summarize(result.replies, result.wall_s).completion_tokens == 45


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ("refuse me", "status 400: not this"),
        ("break off", "without its last event"),
        ("error please", "lost"),
        ("hang", "no complete answer in 0.5 s"),
    ],
)
def test_what_goes_wrong_is_the_error_of_its_reply_alone(prompt: str, reason: str) -> None:
    """One bad answer leaves the others as they are."""
    asks = [Ask("fine", 2), Ask(prompt, 2), Ask("fine too", 2)]
    with like_ours(Crowd()) as port:
        result = run_load(Server("127.0.0.1", port, Generate()), asks, 3, limit_s=0.5)
    good, bad, also_good = result.replies
    assert good.error is None
    assert also_good.error is None
    assert bad.error is not None
    assert reason in bad.error
    assert summarize(result.replies, 1.0).num_failed == 1


def test_an_answer_that_ends_with_its_connection_too_early_is_an_error() -> None:
    """HTTP/1.0 has no other sign of a cut than the missing last event."""
    with like_the_peer(Crowd()) as port:
        result = run_load(Server("127.0.0.1", port, OpenAIChat()), [Ask("break", 4)], 1, limit_s=5.0)
    assert result.replies[0].error is not None


def test_a_seed_is_sent_only_where_there_is_one() -> None:
    """A seed would end the peer's batching; greedy asks carry none."""
    assert "seed" not in OpenAIChat().body(Ask("x", 1))
    assert Generate().body(Ask("x", 1, seed=5))["seed"] == 5
    assert OpenAIChat("m").body(Ask("x", 1))["model"] == "m"


def test_percentiles_lie_between_neighbours() -> None:
    """Interpolated, and nothing is NaN but nothing itself."""
    assert percentile([4.0, 1.0, 3.0, 2.0], 0.5) == 2.5
    assert percentile([1.0, 2.0], 0.95) == pytest.approx(1.95)
    assert percentile([7.0], 0.99) == 7.0
    assert math.isnan(percentile([], 0.5))
    assert median([3.0, 1.0, 2.0]) == 2.0
    assert math.isnan(median([1.0, math.nan]))
    assert math.isnan(median([]))


def test_a_summary_leaves_failed_asks_out_and_counts_them() -> None:
    """Tokens are the server's count, or the events where it gives none."""
    replies = [make_reply([2.0, 3.0, 5.0], 4), make_reply([1.5, 2.0]), make_reply([9.0], 99, error="gone")]
    summary = summarize(replies, 3.0)
    assert (summary.num_asks, summary.num_failed, summary.completion_tokens) == (3, 1, 6)
    assert summary.tokens_per_s == 2.0
    assert summary.ttft_s.p50 == pytest.approx(0.75)
    assert summary.gap_s.p50 == pytest.approx(1.0)
    assert summary.end_to_end_s.p99 == pytest.approx(3.97)


def test_prompts_are_the_same_for_a_seed_and_never_occur_twice() -> None:
    """Rounds and measures share no prompt, so that no prompt cache helps."""
    measures = make_measures((1, 8, 32), 64)
    assert [measure.name for measure in measures] == [
        "greedy-1",
        "greedy-8",
        "greedy-32",
        "sampled-32",
        "long",
    ]

    def asks(round_: int) -> list[Ask]:
        return [
            ask
            for measure in measures
            for ask in make_asks(measure, seed=1, round_=round_, count_tokens=lambda text: len(text.split()))
        ]

    assert asks(1) == asks(1)
    prompts = [ask.prompt for ask in asks(1) + asks(2)]
    assert len(set(prompts)) == len(prompts) == 2 * (3 + 8 + 32 + 32 + 1)
    assert all(25 <= len(prompt.split()) <= 40 for prompt in prompts if len(prompt) < 1000)
    assert sum(len(prompt.split()) >= LONG_PROMPT_TOKENS for prompt in prompts) == 2
    assert len(make_prompts(random.Random(1), 500)) == 500


@given(st.lists(st.integers(0, 3)), st.lists(st.integers(0, 3)))
def test_answers_are_equal_up_to_their_first_difference(one: list[int], other: list[int]) -> None:
    """What lies before it is the same in both."""
    step = first_difference(one, other)
    if step is None:
        assert one == other
    else:
        assert one[:step] == other[:step]
        assert one[step : step + 1] != other[step : step + 1]


def test_only_a_near_tie_excuses_a_difference() -> None:
    """Equal, parted at a near tie, parted elsewhere, and ended early are told apart."""
    clear = {"token_id": 1, "gap": 2.0, "deficit": 0.0}
    tie = {"token_id": 1, "gap": 5e-4, "deficit": 5e-4}
    wrong = {"token_id": 9, "gap": 1.0, "deficit": 1.5}
    agreement = judge(
        [[1, 2], [1, 2], [1, 2], [1, 2]],
        [[1, 2], [1, 3], [1, 3], [1]],
        [[clear, clear], [clear, tie], [clear, wrong], [clear, clear]],
    )
    assert (agreement.num_answers, agreement.num_equal, agreement.num_near_ties) == (4, 1, 1)
    assert len(agreement.mix_ups) == 2
    assert (agreement.num_tokens, agreement.num_reference_near_ties, agreement.num_wrong_tokens) == (8, 1, 1)
    assert agreement.largest_deficit == 1.5
    assert not agreement.is_good
    assert judge([[1]], [[1]], [[clear]]).is_good


def test_a_ratio_above_one_means_that_ours_is_better() -> None:
    """Of more tokens a second, and of less time to the first."""
    fast, long = make_measures((8,), 64)[0], make_measures((8,), 64)[-1]
    records = make_records({"ours": [90, 110, 100], "peer": [50, 40, 60]}, fast)
    assert ratio_of(records, fast, "ours", "peer") == pytest.approx(2.0)
    records = make_records({"ours": [2.0], "peer": [6.0]}, long)
    assert ratio_of(records, long, "ours", "peer") == pytest.approx(3.0)
    assert math.isnan(ratio_of(records, fast, "ours", "peer"))


def test_a_failed_ask_leaves_no_ratio_and_raises_a_doubt() -> None:
    """A server that refuses half its clients is not twice as fast."""
    measure = Measure("greedy-2", 2, 2, 64)
    records = make_records({"ours": [64], "peer": [64]}, measure)
    failed = LoadResult([make_reply([1.1], 64), make_reply([], error="refused")], 1.0)
    records.append(make_record(2, "peer", measure, failed))
    assert math.isnan(ratio_of(records, measure, "ours", "peer"))
    doubts = find_doubts(records, "ours", "peer")
    assert any("1 of 2 failed: refused" in doubt for doubt in doubts)


def test_tables_show_every_measure_and_what_was_not_run() -> None:
    """The sampled measure is held against ours greedy, and the peer has a dash there."""
    greedy, sampled = make_measures((4,), 64)[:2]
    records = make_records({"ours": [100], "peer": [50]}, greedy) + make_records({"ours": [95]}, sampled)
    assert sampled_ratio(records, "ours") == pytest.approx(0.95)
    _, first, second = make_figures_table(records, "ours", "peer")
    assert first.split()[-2:] == ["2.00", "x"]
    assert "-" in second.split()
    assert "(0.95 x of ours greedy)" in second
    assert len(make_latency_table(records, ["ours", "peer"])) == 4


def test_raw_data_is_json_without_nan(tmp_path: Path) -> None:
    """What was never measured is null."""
    record = make_records({"ours": [3]}, Measure("greedy-1", 1, 1, 64))[0]
    path = write_run(tmp_path, "compare", {"nothing": math.nan, "records": [to_data(record)]})
    data = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert data["nothing"] is None
    assert data["records"][0]["summary"]["completion_tokens"] == 3
    assert plain({"a": [0.123456789, (1,)]}) == {"a": [0.123457, [1]]}


def test_overhead_is_worked_out_from_both_ends_clocks() -> None:
    """The client's times and rank 0's are put on one clock."""
    times = {"total_s": 0.5, "queue_s": 0.002, "ttft_s": 0.4}
    usage = Usage(5, 1, 0)
    result = Result("0" * 32, "m", "x", (1,), "length", usage, times, None, finished_unix=1000.5)
    # Sent at 999.999, 0.25 s into the load; the token came 0.403 s after rank 0 accepted, the result 0.405 s.
    reply = Reply(sent_s=0.25, sent_unix=999.999, text_times_s=[0.25 + 0.404], end_s=0.25 + 0.406)
    sample = make_sample(reply, result)
    assert sample.posted_to_claimed_s == pytest.approx(0.003, abs=1e-6)
    assert sample.accepted_to_claimed_s == pytest.approx(0.002, abs=1e-6)
    assert sample.logged_to_token_s == pytest.approx(0.003, abs=1e-6)
    assert sample.logged_to_done_s == pytest.approx(0.005, abs=1e-6)
    rows = make_rows({"process": [sample, sample]})
    assert [round(row["median_ms"]) for row in rows] == [3, 2, 3, 5]


def test_the_machine_is_described_and_a_busy_one_is_a_doubt() -> None:
    """Figures are worth nothing without the machine."""
    machine = describe_machine()
    assert machine["num_cores"] >= 1
    assert machine["versions"]["mlx"]
    assert describe_busy(0.02) == ""
    assert "50%" in describe_busy(0.5)


def test_help_needs_nothing_installed() -> None:
    """The command line imports the standard library alone until a command runs."""
    command = [sys.executable, "-S", "-m", "bench", "--help"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    for name in ("compare", "agreement", "overhead", "idle", "load"):
        assert name in ended.stdout


def test_numbers_of_clients_are_a_sorted_list_of_positive_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    """Anything else is refused with exit code 2."""
    assert make_parser().parse_args(["compare", "--clients", "8,1,8"]).clients == (1, 8)
    with pytest.raises(SystemExit) as ended:
        make_parser().parse_args(["compare", "--clients", "0"])
    assert ended.value.code == 2
    assert "at least 1" in capsys.readouterr().err
