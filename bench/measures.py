"""The measures by name: the requests, how many at once, and the figure of a server.

    kind          measures       figure
    greedy        greedy-N       tokens a second of N clients together, temperature 0
    sampled       sampled-N      the same at temperature 0.7, top_p 0.95, at the most clients
    prompt        prompt-N       seconds to the first token of one prompt of about N tokens
    second-turn   second-turn    the same of the second turn of such a chat, about 30 new tokens
    gap           gap            longest wait of 4 running streams while such a prompt arrives (gap.py)
    context       context-N      tokens a second of one stream behind N tokens of context

All servers of a round get the same prompts; rounds get different ones. Knows no server by name.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.client import Ask, Server
from bench.gap import NUM_STREAMS, make_gap_asks, run_gap, worst_gap_s
from bench.load import LoadResult, Summary, run_load, summarize
from bench.prompts import SECOND_QUESTION, make_long_prompt, make_prompts

KINDS = ("greedy", "sampled", "prompt", "second-turn", "gap")  # of compare; of mixture: greedy, context
NUM_SINGLE_ASKS = 3  # of one client alone
FIRST_TURN_TOKENS, LATER_TOKENS = 32, 8
CONTEXT_ANSWER_TOKENS = 33
TEMPERATURE, TOP_P = 0.7, 0.95
RATE, SECONDS = "tokens/s", "s"

Run = Callable[[Server, random.Random], tuple[LoadResult, float]]


@dataclass(frozen=True)
class Measure:
    """One measure of a server; `run` returns the replies and the figure."""

    kind: str
    name: str
    title: str
    unit: str  # tokens/s: more is better; s: less is
    run: Run
    num_clients: int = 1
    num_tokens: int | None = None  # of all answers; None where their length does not matter


@dataclass(frozen=True)
class Outcome:
    """One measure of one server in one round."""

    summary: Summary
    figure: float  # NaN where a request failed
    errors: list[str]


def run_measure(measure: Measure, server: Server, *, seed: int, round_: int) -> Outcome:
    """Send the measure's requests.

    Raises:
        BenchError: the server cannot be reached.
    """
    result, figure = measure.run(server, random.Random(f"{seed}/{round_}/{measure.name}"))
    errors = sorted({reply.error for reply in result.replies if reply.error})
    return Outcome(summarize(result), math.nan if errors else figure, errors)


def make_measures(
    kinds: Sequence[str], clients: Sequence[int], max_tokens: int, prompt_tokens: Sequence[int]
) -> list[Measure]:
    """The measures of these kinds; `gap`, which closes its streams early, comes last."""
    most, longest = max(clients), max(prompt_tokens)
    found = [
        *(make_load_measure("greedy", count, max_tokens) for count in clients),
        make_load_measure("sampled", most, max_tokens),
        *(_make_prompt_measure(count) for count in prompt_tokens),
        _make_turns_measure(longest),
        *(_make_context_measure(count) for count in prompt_tokens),
        _make_gap_measure(longest),
    ]
    return [measure for measure in found if measure.kind in kinds]


def make_load_measure(kind: str, num_clients: int, max_tokens: int) -> Measure:
    """Clients that ask together, each once; a single client asks several times."""
    num_asks = NUM_SINGLE_ASKS if num_clients == 1 else num_clients
    clients = "1 stream" if num_clients == 1 else f"{num_clients} parallel"
    is_sampled = kind == "sampled"
    how = f", temperature {TEMPERATURE}, top_p {TOP_P}" if is_sampled else ""
    sampling = (TEMPERATURE, TOP_P) if is_sampled else (0.0, 1.0)

    def run(server: Server, source: random.Random) -> tuple[LoadResult, float]:
        asks = [Ask(prompt, max_tokens, *sampling) for prompt in make_prompts(source, num_asks)]
        result = run_load(server, asks, num_clients)
        return result, summarize(result).tokens_per_s

    title = f"{clients} x {max_tokens} tokens{how}"
    return Measure(kind, f"{kind}-{num_clients}", title, RATE, run, num_clients, num_asks * max_tokens)


def _make_context_measure(prompt_tokens: int) -> Measure:
    """One stream behind a long prompt."""

    def run(server: Server, source: random.Random) -> tuple[LoadResult, float]:
        result = run_load(server, [Ask(make_long_prompt(source, prompt_tokens), CONTEXT_ANSWER_TOKENS)], 1)
        (reply,) = result.replies
        seconds = sum(reply.gaps_s)
        return result, (reply.num_tokens - 1) / seconds if seconds else math.nan

    title, name = f"1 stream behind {prompt_tokens} tokens of context", f"context-{prompt_tokens}"
    return Measure("context", name, title, RATE, run, num_tokens=CONTEXT_ANSWER_TOKENS)


def _make_prompt_measure(prompt_tokens: int) -> Measure:
    def run(server: Server, source: random.Random) -> tuple[LoadResult, float]:
        result = run_load(server, [Ask(make_long_prompt(source, prompt_tokens), LATER_TOKENS)], 1)
        return result, result.replies[0].ttft_s

    title = f"time to first token, {prompt_tokens}-token prompt"
    return Measure("prompt", f"prompt-{prompt_tokens}", title, SECONDS, run)


def _make_turns_measure(prompt_tokens: int) -> Measure:
    def run(server: Server, source: random.Random) -> tuple[LoadResult, float]:
        first = Ask(make_long_prompt(source, prompt_tokens), FIRST_TURN_TOKENS)
        before = run_load(server, [first], 1)
        if before.replies[0].error is not None:
            return before, math.nan
        turn = (
            {"role": "user", "content": first.prompt},
            {"role": "assistant", "content": before.replies[0].text},
        )
        after = run_load(server, [Ask(SECOND_QUESTION, LATER_TOKENS, history=turn)], 1)
        both = LoadResult([*before.replies, *after.replies], before.wall_s + after.wall_s)
        return both, after.replies[0].ttft_s

    title = f"time to first token, second turn after {prompt_tokens} tokens"
    return Measure("second-turn", "second-turn", title, SECONDS, run)


def _make_gap_measure(prompt_tokens: int) -> Measure:
    def run(server: Server, source: random.Random) -> tuple[LoadResult, float]:
        result = run_gap(server, make_gap_asks(source, NUM_STREAMS, prompt_tokens))
        has_failed = any(reply.error for reply in result.replies)
        return result, math.nan if has_failed else worst_gap_s(result.replies)

    title = f"worst gap of {NUM_STREAMS} streams while {prompt_tokens} tokens arrive"
    return Measure("gap", "gap", title, SECONDS, run, NUM_STREAMS)
