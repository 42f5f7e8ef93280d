"""The load: a number of clients; each sends its next request after the answer to its last one.

All first connections open before the clock starts, one by one: a server with a short listen backlog
(5 in Python's http.server) would lose some. Later requests include the time of their connection. Knows no
server by name.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import random
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from urllib.parse import urlsplit

import numpy as np

from bench.client import Ask, Connection, Reply, Server
from bench.prompts import make_long_prompt, make_prompts
from bench.service import Service
from bench.setup import BenchError, fill, make_setup, only_run, say
from cluster.terminal import make_table

CONNECT_LIMIT_S = 20.0
ANSWER_LIMIT_S = 600.0
WARM_UP_PROMPT = "Count from one to twenty in words, please. This is number"
WARM_UP_TOKENS = 8
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

    async def run_client(connection: Connection | None) -> None:
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

    async with asyncio.TaskGroup() as group:
        for connection in connections:
            group.create_task(run_client(connection))
    return LoadResult(replies, time.perf_counter() - start_s)


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


def warm_up(server: Server, num_asks: int) -> None:
    """Send requests at once: afterwards the server has read its weights and stepped a batch."""
    asks = [Ask(f"{WARM_UP_PROMPT} {number}.", WARM_UP_TOKENS) for number in range(num_asks)]
    for reply in run_load(server, asks, num_asks).replies:
        if reply.error is not None:
            raise BenchError(f"the warm-up was not answered: {reply.error}")


@contextmanager
def serving(url: str | None, num_clients: int, model: str | None) -> Iterator[Server]:
    """Yield the server at an address (OPENAI_API_KEY has its key); without one start and warm up a service.

    Raises:
        BenchError: the address is not an http:// one, or the service did not start.
    """
    if url is not None:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise BenchError(f"{url} is not an address like http://127.0.0.1:8100")
        yield Server(parts.hostname, parts.port or 80, model, os.environ.get("OPENAI_API_KEY"))
        return
    setup = make_setup()
    with only_run(setup):
        say(f"starting {setup.settings.model_name} on {setup.num_ranks} ranks")
        with Service(setup).running() as server:
            warm_up(server, num_clients)
            yield server


def run(options: argparse.Namespace) -> int:
    """Run one load and print it; 0 if every request was answered, else 1."""
    options.num_requests = options.num_requests or options.num_clients
    plan = fill(LoadPlan, options)
    with serving(options.url, plan.num_clients, options.name) as server:
        say(f"{plan.num_requests} requests, {plan.num_clients} at once, to {server.url}")
        result = run_load(server, make_asks(plan), plan.num_clients)
    summary = summarize(result)
    print(json.dumps(asdict(summary)) if options.json else "\n".join(describe(summary)))
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
