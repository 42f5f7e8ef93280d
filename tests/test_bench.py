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
from bench.edits import read_edits
from bench.gap import num_ended_early, run_gap, worst_gap_s
from bench.http_stream import Event, EventReader
from bench.load import Server, run_load
from bench.machine import describe_busy, describe_machine
from bench.measures import (
    GROUPS,
    LONG_PROMPT_TOKENS,
    Measure,
    all_names,
    choose,
    for_default_flags,
    make_measures,
    make_moe_measures,
    make_prompt_measures,
)
from bench.overhead import make_rows, make_sample
from bench.peers import best_flags, default_flags
from bench.progress import Progress
from bench.records import plain, to_data, write_run
from bench.summary import median, percentile, summarize
from bench.workload import make_asks, make_prompts, make_second_turn
from spool import Result, Usage
from tests.bench_runs import make_records, make_reply
from tests.fake_load_server import Crowd, like_ours, like_the_peer, native_events

BODY = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 3}


def read_all(pieces: list[bytes]) -> list[Event]:
    """Feed an event reader."""
    events: list[Event] = []
    reader = EventReader(events.append)
    for number, piece in enumerate(pieces):
        reader.feed(piece, float(number))
    return events


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


def count_words(text: str) -> int:
    """Stands in for a tokenizer."""
    return len(text.split())


def test_prompts_are_the_same_for_a_seed_and_never_occur_twice() -> None:
    """Rounds and measures share no prompt, so that no prompt cache helps."""
    measures = [measure for measure in make_measures((1, 8, 32), 64) if measure.kind != "edits"]
    names = [measure.name for measure in measures]
    prompts_names = ["prompt-340", "prompt-680", "prompt-1350"]
    loads = ["greedy-1", "greedy-8", "greedy-32", "sampled-32"]
    assert names == [*loads, *prompts_names, "second-turn", "gap"]

    def asks(round_: int) -> list[Ask]:
        return [
            ask
            for measure in measures
            for ask in make_asks(measure, seed=1, round_=round_, count_tokens=count_words)
        ]

    assert asks(1) == asks(1)
    prompts = [ask.prompt for ask in asks(1) + asks(2)]
    assert len(set(prompts)) == len(prompts) == 2 * (3 + 8 + 32 + 32 + 3 + 1 + 5)
    assert all(15 <= len(prompt.split()) <= 40 for prompt in prompts if len(prompt) < 1000)
    assert sum(len(prompt.split()) >= LONG_PROMPT_TOKENS for prompt in prompts) == 2 * 3
    assert len(make_prompts(random.Random(1), 500)) == 500


def test_a_long_prompt_has_the_tokens_asked_for_and_few_more() -> None:
    """Also a very long one, which is not counted after each sentence."""
    for measure in make_prompt_measures((340, 8192)):
        (ask,) = make_asks(measure, seed=1, round_=1, count_tokens=count_words)
        assert measure.prompt_tokens is not None
        assert measure.prompt_tokens <= count_words(ask.prompt) < measure.prompt_tokens + 30


def test_a_second_turn_brings_the_first_one_along() -> None:
    """Both APIs get the whole chat."""
    ask = make_second_turn(Ask("first", 5), "answer")
    roles = [message["role"] for message in Generate().body(ask)["messages"]]
    assert roles == ["user", "assistant", "user"]
    assert OpenAIChat().body(ask)["messages"][1] == {"role": "assistant", "content": "answer"}


def test_measures_are_chosen_by_group_by_name_and_busy() -> None:
    """`busy` is the load in which steps are recorded."""
    measures = make_measures((1, 32), 64)
    assert [measure.name for measure in choose(measures, ["gap"])] == ["gap"]
    assert [measure.name for measure in choose(measures, ["busy", "greedy-1"])] == ["greedy-1", "greedy-32"]
    assert {measure.name for measure in make_moe_measures()} <= set(all_names((1, 32), 64))


def test_a_measure_that_is_named_is_not_left_out_of_a_round() -> None:
    """What no promise is about runs once, unless somebody asks for it."""
    measures = make_measures((1, 16, 32), 64)
    once = [measure.name for measure in choose(measures, GROUPS) if measure.is_once]
    assert once == ["greedy-16", "prompt-340", "prompt-680", "edits"]
    assert [measure.is_once for measure in choose(measures, ["greedy-16", "edits"])] == [False, True]
    assert "context-8192" not in [measure.name for measure in choose(make_moe_measures(), GROUPS)]


def test_the_peer_with_its_default_flags_runs_what_was_promised_against_it() -> None:
    """And gets no flag that tunes it."""
    measures = for_default_flags(choose(make_measures((1, 8, 16, 32), 64), GROUPS))
    assert [measure.name for measure in measures] == [
        "greedy-1",
        "greedy-8",
        "greedy-32",
        "prompt-1350",
        "gap",
    ]
    assert set(best_flags(32)) - set(default_flags()) == {
        "--decode-concurrency",
        "--prompt-concurrency",
        "--prefill-step-size",
        "--prompt-cache-size",
    }


def test_progress_tells_how_many_steps_of_how_many_are_done(capsys: pytest.CaptureFixture[str]) -> None:
    """Once it knows how many there are."""
    progress = Progress()
    progress.line("start")
    progress.expect(2)
    progress.line("one")
    progress.done("two")
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition("] ")[2] for line in lines] == ["start", "one", "two"]
    assert ["0 of 2" in lines[1], "1 of 2" in lines[2], "of" in lines[0]] == [True, True, False]


def test_the_worst_gap_is_of_the_time_in_which_the_prompt_is_read() -> None:
    """Waits before and after do not count; a stream that still waits at the end has waited that long."""
    late = Reply(sent_s=10.0, text_times_s=[15.0], end_s=16.0, finish_reason="length")
    steady = Reply(text_times_s=[1.0, 9.5, 11.0, 13.0, 14.5, 15.5])
    stuck = Reply(text_times_s=[9.0, 11.5])
    ended = Reply(text_times_s=[1.0, 9.9], end_s=9.9, finish_reason="length")
    assert worst_gap_s([steady, late]) == 2.0
    assert worst_gap_s([steady, stuck, late]) == 3.5
    assert worst_gap_s([ended, late]) == 0.0
    assert (num_ended_early([steady, ended, late]), num_ended_early([steady, late])) == (1, 0)


def test_a_gap_breaks_its_streams_off_when_the_prompt_has_its_answer() -> None:
    """What is broken off is no error; no stream ends before, and each shows what it waited for."""
    crowd = Crowd()
    asks = [*(Ask(f"stream {number}", 5000) for number in range(3)), Ask("long", 5000)]
    with like_ours(crowd) as port:
        result = run_gap(Server("127.0.0.1", port, Generate()), asks, limit_s=20.0)
    assert [reply.error for reply in result.replies] == [None] * 4
    *streams, late = result.replies
    assert all(6 <= len(stream.text_times_s) < 5000 for stream in streams)
    assert all(stream.text_times_s[-1] > late.text_times_s[0] for stream in streams)
    assert [reply.finish_reason for reply in result.replies] == [None] * 4
    assert (num_ended_early(result.replies), crowd.num_most) == (0, 4)
    assert worst_gap_s(result.replies) > 0


def test_a_gap_whose_prompt_is_not_answered_is_an_error() -> None:
    """Not a gap of nothing."""
    asks = [Ask("stream", 5000), Ask("refuse", 2)]
    with like_ours(Crowd()) as port:
        result = run_gap(Server("127.0.0.1", port, Generate()), asks, limit_s=20.0)
    assert result.replies[-1].error is not None
    assert "400" in result.replies[-1].error


def test_edits_are_whole_files_that_change_little() -> None:
    """Eight edits of 40 to 150 lines; most lines of each answer stand in its question."""
    edits = read_edits()
    assert len(edits) == 8
    for edit in edits:
        lines = edit.after.splitlines()
        assert 40 <= len(lines) <= 150
        assert edit.before != edit.after
        assert sum(line in edit.before.splitlines() for line in lines) > 0.6 * len(lines)
        compile(edit.after, edit.name, "exec")


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


def test_raw_data_is_json_without_nan(tmp_path: Path) -> None:
    """What was never measured is null."""
    (record,) = make_records({"ours": [3]}, Measure("greedy-1", 1, 1, 64))
    path = write_run(tmp_path, "compare", {"nothing": math.nan, "records": [to_data(record)]})
    data = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert data["nothing"] is None
    assert data["records"][0]["summary"]["completion_tokens"] == 3
    assert plain({"a": [0.123456789, (1,)]}) == {"a": [0.123457, [1]]}


def test_overhead_is_worked_out_from_both_ends_clocks() -> None:
    """The client's times and rank 0's are put on one clock."""
    times = {"total_s": 0.5, "accept_s": 0.0004, "queue_s": 0.002, "ttft_s": 0.4}
    usage = Usage(5, 1, 0)
    result = Result("0" * 32, "m", "x", (1,), "length", usage, times, None, finished_unix=1000.5)
    # Sent at 999.999, 0.25 s into the load; the token came 0.403 s after rank 0 accepted, the result 0.405 s.
    reply = Reply(sent_s=0.25, sent_unix=999.999, text_times_s=[0.25 + 0.404], end_s=0.25 + 0.406)
    sample = make_sample(reply, result)
    assert sample.sent_to_received_s == pytest.approx(0.0006, abs=1e-6)
    assert sample.received_to_accepted_s == pytest.approx(0.0004, abs=1e-6)
    assert sample.accepted_to_claimed_s == pytest.approx(0.002, abs=1e-6)
    assert sample.received_to_claimed_s == pytest.approx(0.0024, abs=1e-6)
    assert sample.sent_to_claimed_s == pytest.approx(0.003, abs=1e-6)
    assert sample.logged_to_token_s == pytest.approx(0.003, abs=1e-6)
    assert sample.logged_to_done_s == pytest.approx(0.005, abs=1e-6)
    rows = make_rows({("process", 0.1): [sample, sample]})
    assert {(row["durability"], row["pause_s"]) for row in rows} == {("process", 0.1)}
    assert [round(row["median_ms"]) for row in rows] == [1, 0, 2, 2, 3, 3, 5]


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
    for name in ("compare", "agreement", "overhead", "idle", "load", "simulated", "report"):
        assert name in ended.stdout


def test_numbers_of_clients_are_a_sorted_list_of_positive_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    """Anything else is refused with exit code 2."""
    assert make_parser().parse_args(["compare", "--clients", "8,1,8"]).clients == (1, 8)
    with pytest.raises(SystemExit) as ended:
        make_parser().parse_args(["compare", "--clients", "0"])
    assert ended.value.code == 2
    assert "at least 1" in capsys.readouterr().err
