"""Runs one measure on a server that is up, and works out the figure that it is judged by.

Knows how each kind of measure is asked; nothing of starting servers, rounds or reports.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.contender import BenchError, Contender
from bench.dialects import Ask, Reply
from bench.edits import make_edit_asks, read_edits, run_forced
from bench.gap import num_ended_early, run_gap, worst_gap_s
from bench.ground import Ground
from bench.load import LoadResult, Server, run_load
from bench.measures import Measure
from bench.ours import Ours
from bench.records import Record, make_record
from bench.step_record import ask_for_record, wait_for_record, wait_until_taken
from bench.timeline import busy_shares, full_window, most_rows, read_spans
from bench.workload import make_asks, make_second_turn

ANSWER_LIMIT_S = 600.0
RECORD_LIMIT_S = 600.0
RECORD_GRACE_S = 10.0
NUM_WARM_UP_ASKS = 2
WARM_UP_PROMPT = "Count from one to twenty in words, please. This is number"
WARM_UP_TOKENS = 8


@dataclass(frozen=True)
class Questions:
    """Where a measure's asks come from."""

    ground: Ground
    seed: int
    counters: dict[str, Any] = field(default_factory=dict)

    def asks_of(self, measure: Measure, round_: int) -> list[Ask]:
        """The asks of a measure in a round; the tokenizer is loaded once."""
        encode = self.counters.setdefault("encode", self.ground.make_encoder())

        def count_tokens(prompt: str) -> int:
            return len(encode(prompt))

        return make_asks(measure, seed=self.seed, round_=round_, count_tokens=count_tokens)


def run_measure(
    server: Server, contender: Contender, measure: Measure, round_: int, questions: Questions
) -> Record:
    """Ask what the measure asks, and put the replies and the figure into a record.

    Raises:
        BenchError: the server cannot be reached at all.
    """
    extra: dict[str, Any] = {}
    try:
        if measure.kind == "edits":
            result, extra = _run_edits(server, contender, measure, questions)
        elif measure.kind == "gap":
            result = run_gap(server, questions.asks_of(measure, round_), limit_s=ANSWER_LIMIT_S)
        elif measure.kind == "second-turn":
            result = _run_turns(server, questions.asks_of(measure, round_)[0])
        elif measure.records_steps and isinstance(contender, Ours):
            result, extra = _run_recorded(server, contender, measure, questions.asks_of(measure, round_))
        else:
            result = ask_server(server, questions.asks_of(measure, round_), measure.num_clients)
    except (OSError, TimeoutError) as error:
        raise BenchError(f"{server.host}:{server.port} cannot be reached: {error!r}") from None
    record = make_record(round_, contender.name, measure, result)
    figure = math.nan if record.summary.num_failed else figure_of(measure, record)
    if measure.kind == "gap" and not record.summary.num_failed:
        extra["num_ended_early"] = num_ended_early(result.replies)
    return Record(**{**vars(record), "figure": figure, "extra": extra})


def figure_of(measure: Measure, record: Record) -> float:
    """What the measure is judged by."""
    replies = record.result.replies
    if measure.kind == "prompt":
        return record.summary.ttft_s.p50
    if measure.kind == "second-turn":
        return replies[-1].ttft_s
    if measure.kind == "gap":
        return worst_gap_s(replies)
    if measure.kind in ("edits", "context"):
        return rate_after_first(replies)
    return record.summary.tokens_per_s


def rate_after_first(replies: Sequence[Reply]) -> float:
    """Tokens a second of answers one after the other, without the times to their first tokens."""
    num_tokens = sum(reply.num_tokens - 1 for reply in replies)
    seconds = sum(reply.text_times_s[-1] - reply.text_times_s[0] for reply in replies)
    return num_tokens / seconds if seconds > 0 else math.nan


def _run_edits(
    server: Server, contender: Contender, measure: Measure, questions: Questions
) -> tuple[LoadResult, dict[str, Any]]:
    if isinstance(contender, Ours) and contender.makes_drafts:
        result = run_forced(server, questions.ground, contender.settings, limit_s=ANSWER_LIMIT_S)
        return result, {"is_forced": True}
    asks = make_edit_asks(read_edits(), measure.max_tokens)
    return ask_server(server, asks, 1), {"is_forced": False}


def _run_turns(server: Server, first: Ask) -> LoadResult:
    """The first turn, then the second with the first one's answer in its history."""
    before = ask_server(server, [first], 1)
    if before.replies[0].error is not None:
        return before
    after = ask_server(server, [make_second_turn(first, before.replies[0].text)], 1)
    return LoadResult([*before.replies, *after.replies], before.wall_s + after.wall_s)


def _run_recorded(
    server: Server, ours: Ours, measure: Measure, asks: Sequence[Ask]
) -> tuple[LoadResult, dict[str, Any]]:
    result, steps = load_recorded(server, ours, asks, measure.num_clients)
    spans = read_spans(steps)
    num_rows = most_rows(spans)
    window = full_window(spans, num_rows)
    if window is None:
        return result, {"busy": None, "busy_rows": num_rows}
    shares = busy_shares(spans, len(steps["ranks"]), *window)
    return result, {"busy": shares, "busy_rows": num_rows, "busy_window_s": (window[1] - window[0]) / 1e6}


def load_recorded(
    server: Server, ours: Ours, asks: Sequence[Ask], num_clients: int
) -> tuple[LoadResult, dict[str, Any]]:
    """Run a load while rank 0 records every step.

    Raises:
        BenchError: no record came.
    """
    wanted = uuid.uuid4().hex
    ask_for_record(ours.settings, RECORD_LIMIT_S, wanted)
    if not wait_until_taken(ours.settings, RECORD_GRACE_S):
        raise BenchError("rank 0 does not look for requests to record its steps")
    result = ask_server(server, asks, num_clients)
    ask_for_record(ours.settings, 0, "")
    record = wait_for_record(ours.settings, wanted, RECORD_GRACE_S)
    if record is None:
        raise BenchError("rank 0 wrote no record of its steps: was the ring restarted?")
    return result, record


def ask_server(server: Server, asks: Sequence[Ask], num_clients: int) -> LoadResult:
    """Run a load.

    Raises:
        BenchError: the server cannot be reached at all.
    """
    try:
        return run_load(server, asks, num_clients, limit_s=ANSWER_LIMIT_S)
    except (OSError, TimeoutError) as error:
        raise BenchError(f"{server.host}:{server.port} cannot be reached: {error!r}") from None


def warm_up(server: Server, num_asks: int = NUM_WARM_UP_ASKS) -> None:
    """Ask at once, so that weights are read, batches have been made, and a loading server is ready."""
    asks = [Ask(f"{WARM_UP_PROMPT} {number}.", WARM_UP_TOKENS) for number in range(num_asks)]
    for reply in ask_server(server, asks, num_asks).replies:
        if reply.error is not None:
            raise BenchError(f"the warm-up was not answered: {reply.error}")


def ask_alone(ours: Ours, asks: Sequence[Ask]) -> list[Reply]:
    """Ask one at a time, in a new life of the service: its prompt cache knows nothing of other runs."""
    with ours.running() as server:
        warm_up(server)
        return ask_server(server, asks, 1).replies
