"""`bench load`: one load on a server that runs already, whoever's it is.

Knows the two APIs of dialects.py and nothing of starting or stopping.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from urllib.parse import urlsplit

from bench.contender import BenchError
from bench.dialects import Ask, Dialect, Generate, OpenAIChat
from bench.load import LoadResult, Server, run_load
from bench.progress import Progress
from bench.records import plain
from bench.summary import Percentiles, Summary, summarize
from bench.workload import make_prompts
from cluster.terminal import make_table

ANSWER_LIMIT_S = 600.0


@dataclass(frozen=True)
class LoadPlan:
    """Where to, in which API, and how much."""

    url: str
    api: str
    model: str | None
    key: str | None
    num_clients: int
    num_requests: int
    max_tokens: int
    temperature: float
    top_p: float
    seed: int


def run_single_load(plan: LoadPlan, progress: Progress, *, as_json: bool) -> int:
    """Run it and print; 0 if every ask was answered, else 1."""
    server = make_server(plan)
    prompts = make_prompts(random.Random(plan.seed), plan.num_requests)
    asks = [Ask(prompt, plan.max_tokens, plan.temperature, plan.top_p) for prompt in prompts]
    progress.line(f"{plan.num_requests} requests, {plan.num_clients} at once, to {plan.url}")
    try:
        result = run_load(server, asks, plan.num_clients, limit_s=ANSWER_LIMIT_S)
    except (OSError, TimeoutError) as error:
        raise BenchError(f"{plan.url} cannot be reached: {error!r}") from None
    summary = summarize(result.replies, result.wall_s)
    if as_json:
        print(json.dumps(plain({"summary": asdict(summary), "replies": _replies(result)})))
    else:
        print("\n".join(make_lines(summary)))
    for reason in sorted({reply.error for reply in result.replies if reply.error}):
        print(f"failed: {reason}", file=sys.stderr)
    return 1 if summary.num_failed else 0


def make_server(plan: LoadPlan) -> Server:
    """Take the address apart.

    Raises:
        BenchError: it is no http address.
    """
    parts = urlsplit(plan.url)
    if parts.scheme != "http" or not parts.hostname:
        raise BenchError(f"{plan.url} is no address like http://HOST:PORT")
    dialect: Dialect = Generate() if plan.api == "generate" else OpenAIChat(plan.model)
    headers: Mapping[str, str] = {"authorization": f"Bearer {plan.key}"} if plan.key else {}
    return Server(parts.hostname, parts.port or 80, dialect, headers)


def make_lines(summary: Summary) -> list[str]:
    """The summary for a person."""

    def row(name: str, found: Percentiles) -> tuple[str, ...]:
        return (name, *(f"{value * 1000:.0f}" for value in (found.p50, found.p95, found.p99)))

    rows = [
        ("milliseconds", "p50", "p95", "p99"),
        row("time to first token", summary.ttft_s),
        row("inter-token", summary.gap_s),
        row("end to end", summary.end_to_end_s),
    ]
    return [
        f"{summary.num_asks - summary.num_failed} of {summary.num_asks} answered, "
        f"{summary.prompt_tokens} prompt and {summary.completion_tokens} answer tokens in "
        f"{summary.wall_s:.2f} s: {summary.tokens_per_s:.1f} tokens/s",
        *make_table(rows),
    ]


def _replies(result: LoadResult) -> list[dict[str, object]]:
    return [asdict(reply) for reply in result.replies]
