"""The gap: how long running streams wait for a token while a long prompt is read.

Some streams run. When each has shown a few tokens, the bench sends one long prompt. When the prompt has its
first token, and each stream one after it, the bench closes all connections. So streams run only while the
server reads the prompt. Knows no server by name.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from collections.abc import Callable, Sequence
from itertools import pairwise

from bench.client import Ask, Connection, Reply, Server
from bench.load import ANSWER_LIMIT_S, LoadResult, serving
from bench.prompts import make_endless_prompts, make_long_prompt
from bench.setup import BenchError, say

NUM_STREAMS = 4
STREAM_TOKENS = 1000  # more than any server makes until it has read the prompt
LATE_TOKENS = 8
NUM_TOKENS_BEFORE = 6
LOOK_INTERVAL_S = 0.01


def make_gap_asks(source: random.Random, num_streams: int, prompt_tokens: int) -> list[Ask]:
    """The streams, then the long prompt."""
    streams = [Ask(prompt, STREAM_TOKENS) for prompt in make_endless_prompts(source, num_streams)]
    return [*streams, Ask(make_long_prompt(source, prompt_tokens), LATE_TOKENS)]


def run(options: argparse.Namespace) -> int:
    """Run it once and print the worst gap; 0.

    Raises:
        BenchError: a stream or the prompt was not answered.
    """
    num_streams, prompt_tokens = options.num_streams, options.prompt_tokens
    with serving(options.url, num_streams, options.name) as server:
        say(f"{num_streams} streams, then a prompt of {prompt_tokens} tokens, to {server.url}")
        asks = make_gap_asks(random.Random(options.seed), num_streams, prompt_tokens)
        replies = run_gap(server, asks).replies
    if errors := [reply.error for reply in replies if reply.error]:
        raise BenchError(f"no gap to measure: {errors[0]}")
    found = {
        "worst_gap_s": round(worst_gap_s(replies), 4),
        "ttft_s": round(replies[-1].ttft_s, 4),
        "num_ended_early": num_ended_early(replies),
    }
    if options.json:
        print(json.dumps(found))
        return 0
    print(f"worst gap of {num_streams} streams: {found['worst_gap_s']:.2f} s")
    print(f"first token of the prompt: {found['ttft_s']:.2f} s")
    if found["num_ended_early"]:
        print(f"{found['num_ended_early']} streams ended before it, so their gaps are too short")
    return 0


def run_gap(server: Server, asks: Sequence[Ask]) -> LoadResult:
    """Run it; the last ask is the long prompt. A stream that the bench closes is no error."""
    return asyncio.run(_run(server, asks))


async def _run(server: Server, asks: Sequence[Ask]) -> LoadResult:
    replies = [Reply() for _ in asks]
    *streams, late = replies
    start_s = time.perf_counter()
    tasks = [
        asyncio.create_task(_ask(server, ask, reply, start_s))
        for ask, reply in zip(asks[:-1], streams, strict=True)
    ]
    try:
        async with asyncio.timeout(ANSWER_LIMIT_S):
            await _wait_until(lambda: _have_all_begun(tasks, streams))
            tasks.append(asyncio.create_task(_ask(server, asks[-1], late, start_s)))
            await _wait_until(lambda: tasks[-1].done() or _have_all_gone_on(tasks, streams, late))
    except TimeoutError:
        late.error = late.error or f"no first token of the prompt in {ANSWER_LIMIT_S:g} s"
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    if not late.text_times_s:
        late.error = late.error or "the prompt was not answered"
    for reply in replies:
        if reply.text_times_s and not reply.end_s:
            reply.end_s = reply.text_times_s[-1]  # closed by the bench: it has no finish_reason
    return LoadResult(replies, time.perf_counter() - start_s)


async def _wait_until(is_so: Callable[[], bool]) -> None:
    while not is_so():  # noqa: ASYNC110 - connections fill the replies, and have no event for it
        await asyncio.sleep(LOOK_INTERVAL_S)


async def _ask(server: Server, ask: Ask, reply: Reply, start_s: float) -> None:
    try:
        connection = await Connection.open(server)
    except OSError as error:
        reply.error = f"{server.url} cannot be reached ({error}): start the service with ./launch.sh start"
        return
    await connection.ask(ask, reply, start_s)


def _have_all_begun(tasks: Sequence[asyncio.Task[None]], streams: Sequence[Reply]) -> bool:
    """Each stream has shown a few tokens, or one has already ended."""
    is_any_over = any(task.done() for task in tasks)
    return is_any_over or all(len(stream.text_times_s) >= NUM_TOKENS_BEFORE for stream in streams)


def _have_all_gone_on(tasks: Sequence[asyncio.Task[None]], streams: Sequence[Reply], late: Reply) -> bool:
    """The prompt has its first token, and each running stream has one after it."""
    return bool(late.text_times_s) and all(
        task.done() or max(stream.text_times_s, default=0.0) > late.text_times_s[0]
        for task, stream in zip(tasks, streams, strict=False)
    )


def worst_gap_s(replies: Sequence[Reply]) -> float:
    """The longest gap of a stream that overlaps with the long prompt, which the last reply belongs to.

    A stream that still waits when the prompt has its first token counts until then.
    """
    *streams, late = replies
    begin_s, end_s = late.sent_s, late.text_times_s[0]
    worst_s = 0.0
    for stream in streams:
        times = [*stream.text_times_s, *([] if stream.finish_reason else [end_s])]
        for before_s, after_s in pairwise(times):
            if after_s > begin_s and before_s < end_s:
                worst_s = max(worst_s, after_s - before_s)
    return worst_s


def num_ended_early(replies: Sequence[Reply]) -> int:
    """Streams that had their whole answer before the long prompt had its first token."""
    *streams, late = replies
    return sum(stream.finish_reason is not None and stream.end_s < late.text_times_s[0] for stream in streams)
