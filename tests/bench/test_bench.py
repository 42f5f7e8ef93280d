"""The bench's parts without a model: loads and gaps on a fake server, figures, judging, prompts, flags."""

from __future__ import annotations

import math
import random
import subprocess
import sys
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import command_line
from bench.agreement import first_difference, judge
from bench.client import Ask, Reply, Server
from bench.command_line import make_parser
from bench.comparison import find_doubts
from bench.gap import num_ended_early, run_gap, worst_gap_s
from bench.load import LoadPlan, LoadResult, make_asks, percentiles, run_load, summarize
from bench.measures import KINDS, Outcome, make_measures, run_measure
from bench.overhead import make_rows, make_sample
from bench.prompts import make_long_prompt, make_prompts
from config import REPOSITORY_ROOT
from spool import Result, Usage
from tests.fakes.fake_load_server import Crowd, serve

COMMANDS = ("load", "gap", "compare", "peers", "mixture", "agreement", "overhead", "simulated")
OTHER_COMMANDS = ("trace", "report")


@pytest.mark.parametrize("is_chunked", [True, False])
def test_a_load_asks_everything_with_so_many_clients_at_once(is_chunked: bool) -> None:
    """Every ask is answered, counted by the server's own count, and never more are under way than clients."""
    crowd = Crowd()
    asks = [Ask(f"question {number}", max_tokens=5) for number in range(9)]
    with serve(crowd, is_chunked=is_chunked) as port:
        result = run_load(Server("127.0.0.1", port), asks, 4, limit_s=10.0)
    assert [reply.error for reply in result.replies] == [None] * 9
    for reply in result.replies:
        assert reply.num_tokens == len(reply.text_times_s) == 5
        assert reply.text == "é0 é1 é2 é3 é4 "
        assert (reply.finish_reason, reply.num_cached_tokens) == ("length", 3)
        assert 0 <= reply.sent_s < reply.text_times_s[0] <= reply.end_s <= result.wall_s
    assert 1 <= crowd.num_most <= 4
    assert summarize(result).completion_tokens == 45


@pytest.mark.parametrize("is_chunked", [True, False])
@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ("refuse me", "status 400: not this"),
        ("break off", "without its last event"),
        ("error please", "lost"),
        ("hang", "no complete answer in 0.5 s"),
    ],
)
def test_what_goes_wrong_is_the_error_of_its_reply_alone(prompt: str, reason: str, is_chunked: bool) -> None:
    """One bad answer leaves the others as they are; of HTTP/1.0 only the last event tells a whole answer."""
    asks = [Ask("fine", 2), Ask(prompt, 2), Ask("fine too", 2)]
    with serve(Crowd(), is_chunked=is_chunked) as port:
        result = run_load(Server("127.0.0.1", port), asks, 3, limit_s=0.5)
    good, bad, also_good = result.replies
    assert good.error is None
    assert also_good.error is None
    assert bad.error is not None
    assert reason in bad.error
    assert summarize(result).num_failed == 1


def test_a_server_that_is_not_there_is_told_with_what_helps(capsys: pytest.CaptureFixture[str]) -> None:
    """Not a traceback; so is an address that is none."""
    for command in ("load", "gap"):
        assert command_line.main([command, "http://127.0.0.1:9"]) == 1
        assert "127.0.0.1:9 cannot be reached" in (shown := capsys.readouterr().err)
        assert "./launch.sh start" in shown
    assert command_line.main(["load", "localhost"]) == 1
    assert "http://127.0.0.1:8100" in capsys.readouterr().err


def test_a_body_has_the_whole_chat_and_no_seed() -> None:
    """A seed would end the peer's batching."""
    history = ({"role": "user", "content": "first"}, {"role": "assistant", "content": "answer"})
    body = Ask("next", 1, history=history).body("m")
    assert body["messages"] == [*history, {"role": "user", "content": "next"}]
    assert body["model"] == "m"
    assert not {"seed", "model", "top_p"} & Ask("x", 1).body(None).keys() - {"stream"}


def test_a_summary_leaves_failed_asks_out_and_counts_them() -> None:
    """Tokens are the server's count, or the chunks where it gives none; percentiles are interpolated."""
    counted = Reply(sent_s=1.0, text_times_s=[2.0, 3.0, 5.0], end_s=5.0, usage={"completion_tokens": 4})
    plain = Reply(sent_s=1.0, text_times_s=[1.5, 2.0], end_s=2.0)
    summary = summarize(LoadResult([counted, plain, Reply(error="gone")], 3.0))
    assert (summary.num_asks, summary.num_failed, summary.completion_tokens) == (3, 1, 6)
    assert summary.tokens_per_s == 2.0
    assert (summary.ttft_ms[0], summary.gap_ms[0], summary.worst_gap_ms) == pytest.approx((750, 1000, 2000))
    assert math.isnan(summary.cached_ratio)
    assert percentiles([]) == [None] * 3


def test_prompts_are_the_same_for_a_seed_and_never_occur_twice() -> None:
    """Long ones have about the tokens asked for, mixed ones any number up to that."""
    assert len(set(make_prompts(random.Random(1), 500))) == 500
    assert make_prompts(random.Random(1), 5) == make_prompts(random.Random(1), 5)
    for num_tokens in (100, 8192):
        assert num_tokens * 3.9 < len(make_long_prompt(random.Random(1), num_tokens)) < num_tokens * 4 + 150
    asks = make_asks(LoadPlan(4, 20, 64, prompt_tokens=500, is_mixed=True))
    assert len({ask.max_tokens for ask in asks}) > 5
    assert len({len(ask.prompt) for ask in asks}) > 5
    assert {ask.max_tokens for ask in make_asks(LoadPlan(4, 20, 64))} == {64}


def test_every_measure_gives_a_figure() -> None:
    """On a server that answers; a request that fails is a doubt, and so is an answer that ends early."""
    measures = make_measures(KINDS, (1, 4), 5, (50, 100))
    names = ["greedy-1", "greedy-4", "sampled-4", "prompt-50", "prompt-100", "second-turn", "gap"]
    assert [measure.name for measure in measures] == names
    measures += make_measures(("context",), (1,), 5, (100,))
    with serve(Crowd()) as port:
        server = Server("127.0.0.1", port)
        for measure in measures:
            outcome = run_measure(measure, server, seed=1, round_=1)
            assert outcome.figure > 0
            assert find_doubts(measure, outcome) == []
    failed = Outcome(summarize(LoadResult([Reply(error="refused")], 1.0)), math.nan, ["refused"])
    assert find_doubts(measures[0], failed) == ["1 of 1 failed: refused"]
    early = Outcome(summarize(LoadResult([Reply(text_times_s=[1.0])], 1.0)), 1.0, [])
    assert find_doubts(measures[0], early) == ["only 1 of 15 tokens: answers ended early"]


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
    """What is broken off is no error; a prompt that is not answered is one."""
    crowd = Crowd()
    with serve(crowd) as port:
        server = Server("127.0.0.1", port)
        result = run_gap(server, [*(Ask(f"stream {number}", 5000) for number in range(3)), Ask("long", 5000)])
        refused = run_gap(server, [Ask("stream", 5000), Ask("refuse", 2)])
    assert [reply.error for reply in result.replies] == [None] * 4
    *streams, late = result.replies
    assert all(6 <= len(stream.text_times_s) < 5000 for stream in streams)
    assert all(stream.text_times_s[-1] > late.text_times_s[0] for stream in streams)
    assert worst_gap_s(result.replies) > 0
    assert "400" in str(refused.replies[-1].error)


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


def test_overhead_is_worked_out_from_both_ends_clocks() -> None:
    """The client's times and rank 0's are put on one clock."""
    times = {"total_s": 0.5, "accept_s": 0.0004, "queue_s": 0.002, "ttft_s": 0.4}
    result = Result("0" * 32, "m", "x", (1,), "length", Usage(5, 1, 0), times, None, finished_unix=1000.5)
    # Sent at 999.999, 0.25 s into the load; the token came 0.403 s after rank 0 accepted, the result 0.405 s.
    reply = Reply(sent_s=0.25, sent_unix=999.999, text_times_s=[0.25 + 0.404], end_s=0.25 + 0.406)
    sample = make_sample(reply, result)
    assert list(asdict(sample).values()) == pytest.approx([0.0004, 0.0024, 0.003, 0.003, 0.005], abs=1e-6)
    rows = make_rows("process", 0.1, [sample, sample])
    assert [round(float(row["median_ms"]), 1) for row in rows] == [0.4, 2.4, 3.0, 3.0, 5.0]


@pytest.mark.parametrize("command", ["", *COMMANDS, *OTHER_COMMANDS])
def test_help_needs_nothing_installed(command: str) -> None:
    """The command line imports the standard library alone until a command runs, and names every command."""
    words = [sys.executable, "-S", "-m", "bench", *command.split(), "--help"]
    ended = subprocess.run(words, cwd=REPOSITORY_ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert command or all(f"    {name}" in ended.stdout for name in COMMANDS + OTHER_COMMANDS)


def test_flags_of_nonsense_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """With exit code 2 and what is allowed."""
    assert make_parser().parse_args(["compare", "--clients", "8,1,8"]).clients == (1, 8)
    assert command_line.KINDS == KINDS
    for words, reason in ((["--clients", "0"], "at least 1"), (["--only", "greedy,x"], "second-turn")):
        with pytest.raises(SystemExit) as ended:
            make_parser().parse_args(["compare", *words])
        assert ended.value.code == 2
        assert reason in capsys.readouterr().err
