"""The load: a number of clients; each sends its next request after the answer to its last one.

All first connections open before the clock starts, one by one: a server with a short listen backlog
(5 in Python's http.server) would lose some. Later requests include the time of their connection. Knows no
server by name.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import sys
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from bench.client import Ask, Connection, Reply, Server
from bench.prompts import make_long_prompt, make_prompts
from bench.setup import BenchError, say
from cluster.terminal import make_table

CONNECT_LIMIT_S = 20.0
ANSWER_LIMIT_S = 600.0
SHARES = (0.50, 0.95, 0.99)


@dataclass(frozen=True)
class LoadResult:
    """The replies in the order of the asks, and the time from the first request to the last answer."""

    replies: list[Reply]
    wall_s: float


@dataclass(frozen=True)
class Summary:
    """The figures of one load, without failed requests; latencies are p50, p95, p99 in ms."""

    num_asks: int
    num_failed: int
    wall_s: float
    prompt_tokens: int
    cached_tokens: int  # of the prompts, found in the server's prompt cache
    completion_tokens: int
    tokens_per_s: float  # of all answers together
    ttft_ms: list[float | None]
    gap_ms: list[float | None]
    total_ms: list[float | None]
    worst_gap_ms: float | None

    @property
    def cached_ratio(self) -> float:
        """Share of the prompts that came from the server's prompt cache."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else math.nan


@dataclass(frozen=True)
class LoadPlan:
    """What to send; with `is_mixed` prompts and answers have random lengths up to the given ones."""

    num_clients: int
    num_requests: int
    max_tokens: int
    prompt_tokens: int | None = None  # None: about 30 words
    is_mixed: bool = False
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 1


def run_load(
    server: Server, asks: Sequence[Ask], num_clients: int, *, limit_s: float = ANSWER_LIMIT_S
) -> LoadResult:
    """Send all requests, at most `num_clients` at once.

    Args:
        limit_s: for one answer; a longer one is an error in its reply.

    Raises:
        BenchError: the server cannot be reached.
    """
    try:
        return asyncio.run(_ask_all(server, asks, num_clients, limit_s))
    except (OSError, TimeoutError) as error:
        raise BenchError(
            f"{server.url} cannot be reached ({error!r}): start the service with ./launch.sh start; load and "
            "gap without an address start one themselves"
        ) from None


async def _ask_all(server: Server, asks: Sequence[Ask], num_clients: int, limit_s: float) -> LoadResult:
    replies = [Reply() for _ in asks]
    pending = deque(zip(asks, replies, strict=True))
    async with asyncio.timeout(CONNECT_LIMIT_S):
        connections = [await Connection.open(server) for _ in range(min(num_clients, len(asks)))]
    start_s = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for connection in connections:
            group.create_task(_run_client(server, connection, pending, start_s, limit_s))
    return LoadResult(replies, time.perf_counter() - start_s)


async def _run_client(
    server: Server,
    connection: Connection | None,
    pending: deque[tuple[Ask, Reply]],
    start_s: float,
    limit_s: float,
) -> None:
    while pending:
        ask, reply = pending.popleft()
        try:
            async with asyncio.timeout(limit_s):
                connection = connection or await Connection.open(server)
                await connection.ask(ask, reply, start_s)
        except TimeoutError:
            reply.error = f"no complete answer in {limit_s:g} s"
        except OSError as error:
            reply.error = str(error)
        connection = None
    if connection is not None:
        connection.close()


def short(value: float) -> float | None:
    """A figure for JSON: six digits, and null for NaN."""
    return None if math.isnan(value) else float(f"{value:.6g}")


def percentiles(values: Iterable[float]) -> list[float | None]:
    """p50, p95 and p99 of seconds, in milliseconds; None without values."""
    taken = [value * 1000 for value in values] or [math.nan]
    return [short(ms) for ms in np.quantile(taken, SHARES)]


def summarize(result: LoadResult) -> Summary:
    """Compute the figures of one load."""
    good = [reply for reply in result.replies if reply.error is None]
    num_tokens = sum(reply.num_tokens for reply in good)
    gaps = [gap for reply in good for gap in reply.gaps_s]
    return Summary(
        num_asks=len(result.replies),
        num_failed=len(result.replies) - len(good),
        wall_s=result.wall_s,
        prompt_tokens=sum(reply.num_prompt_tokens for reply in good),
        cached_tokens=sum(reply.num_cached_tokens for reply in good),
        completion_tokens=num_tokens,
        tokens_per_s=num_tokens / result.wall_s if result.wall_s > 0 else math.nan,
        ttft_ms=percentiles(reply.ttft_s for reply in good),
        gap_ms=percentiles(gaps),
        total_ms=percentiles(reply.total_s for reply in good),
        worst_gap_ms=short(max(gaps, default=math.nan) * 1000),
    )


def make_asks(plan: LoadPlan) -> list[Ask]:
    """The requests of a plan."""
    source = random.Random(plan.seed)
    asks = []
    for prompt in make_prompts(source, plan.num_requests):
        max_tokens, prompt_tokens = plan.max_tokens, plan.prompt_tokens
        if plan.is_mixed:
            max_tokens = source.randint(1, max_tokens)
            prompt_tokens = prompt_tokens and source.randint(1, prompt_tokens)
        text = make_long_prompt(source, prompt_tokens) if prompt_tokens else prompt
        asks.append(Ask(text, max_tokens, plan.temperature, plan.top_p))
    return asks


def measure_load(server: Server, plan: LoadPlan, *, as_json: bool) -> int:
    """Run one load and print it; 0 if every request was answered, else 1."""
    say(f"{plan.num_requests} requests, {plan.num_clients} at once, to {server.url}")
    result = run_load(server, make_asks(plan), plan.num_clients)
    summary = summarize(result)
    print(json.dumps(asdict(summary)) if as_json else "\n".join(describe(summary)))
    for reason in sorted({reply.error for reply in result.replies if reply.error}):
        print(f"failed: {reason}", file=sys.stderr)
    return 1 if summary.num_failed else 0


def describe(summary: Summary) -> list[str]:
    """The summary for a person."""
    rows: list[tuple[str, ...]] = [("milliseconds", "p50", "p95", "p99", "worst")]
    for name, found in (
        ("time to first token", [*summary.ttft_ms, None]),
        ("between tokens", [*summary.gap_ms, summary.worst_gap_ms]),
        ("whole answer", [*summary.total_ms, None]),
    ):
        rows.append((name, *("" if ms is None else f"{ms:.0f}" for ms in found)))
    return [
        f"{summary.num_asks - summary.num_failed} of {summary.num_asks} answered, {summary.prompt_tokens} "
        f"prompt tokens ({summary.cached_tokens} cached) and {summary.completion_tokens} answer tokens in "
        f"{summary.wall_s:.2f} s: {summary.tokens_per_s:.1f} tokens/s",
        *make_table(rows),
    ]
