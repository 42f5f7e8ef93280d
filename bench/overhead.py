"""The time that front door and spool add on an idle service, with SPOOL_DURABILITY=process and power.

One streamed chat of one token at a time: after a pause, in which all processes sleep and the processor's
caches go cold, and right after the last answer. The times of each:

    received → accepted  from the first bytes at the front door to just before submit (performance.accept_s):
                         HTTP, checks, chat template, tokenizing
    received → claimed   until rank 0 has claimed it (performance.queue_s): submit, with a sync for power,
                         doorbell, claim
    sent → claimed       the same from the client's clock just before it writes the POST
    logged → token       from rank 0's clock just before it appends the token to the log to the client's, when
                         the token's event has come out of the socket: log, doorbell, front door, HTTP
    logged → done        the same to the last event, after the result, a file that power has to sync

All clocks are time.time() of one machine; rank 0's times come from the result file (finished_unix,
performance). Knows the spool's results and nothing of how they are written.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from dataclasses import asdict, dataclass, fields

import numpy as np

from bench.client import Ask, Reply, Server
from bench.load import run_load, warm_up
from bench.machine import describe_busy
from bench.prompts import make_prompts
from bench.service import Service
from bench.setup import make_setup, only_run, say
from cluster.terminal import make_table
from spool import Result

PAUSES_S = (0.1, 0.0)  # between an answer and the next request
DURABILITIES = ("process", "power")
NUM_WARM_UP_ASKS = 2
SHARES = {"median": 0.5, "p95": 0.95, "max": 1.0}


@dataclass(frozen=True)
class Sample:
    """The times of one request, in seconds."""

    received_to_accepted: float
    received_to_claimed: float
    sent_to_claimed: float
    logged_to_token: float
    logged_to_done: float


def make_sample(reply: Reply, result: Result) -> Sample:
    """Put the client's times and rank 0's together."""
    times = result.performance
    accepted_unix = result.finished_unix - float(times["total_s"])
    logged_unix = accepted_unix + float(times["ttft_s"])
    accept_s, queue_s = float(times["accept_s"]), float(times["queue_s"])
    # The reply's times come from a monotonic clock: the moment of sending ties them to the wall clock.
    offset = reply.sent_unix - reply.sent_s
    return Sample(
        received_to_accepted=accept_s,
        received_to_claimed=accept_s + queue_s,
        sent_to_claimed=accepted_unix + queue_s - reply.sent_unix,
        logged_to_token=offset + reply.text_times_s[-1] - logged_unix,
        logged_to_done=offset + reply.end_s - logged_unix,
    )


def run(options: argparse.Namespace) -> int:
    """Measure both durabilities and print a table; 0."""
    setup = make_setup()
    rows = []
    with only_run(setup):
        doubts = describe_busy()
        for durability in DURABILITIES:
            say(f"SPOOL_DURABILITY={durability}: starting")
            service = Service(setup, {"SPOOL_DURABILITY": durability})
            with service.running() as server:
                warm_up(server, NUM_WARM_UP_ASKS)
                for pause_s in PAUSES_S:
                    say(f"SPOOL_DURABILITY={durability}: {options.requests} requests, {pause_s:g} s apart")
                    samples = measure(server, service, options.requests, options.seed, pause_s)
                    rows += make_rows(durability, pause_s, samples)
    if options.json:
        print(json.dumps({"doubts": doubts, "rows": rows}))
    else:
        print("\n".join([*describe(rows), *(f"Doubt: {doubt}" for doubt in doubts)]))
    return 0


def measure(server: Server, service: Service, num_requests: int, seed: int, pause_s: float) -> list[Sample]:
    """Ask one by one, then look up each result file."""
    replies = []
    for prompt in make_prompts(random.Random(f"{seed}/overhead/{pause_s:g}"), num_requests):
        replies += run_load(server, [Ask(prompt, max_tokens=1)], 1).replies
        time.sleep(pause_s)
    return [make_sample(*pair) for pair in zip(replies, service.results(replies), strict=True)]


def make_rows(durability: str, pause_s: float, samples: list[Sample]) -> list[dict[str, str | float]]:
    """Median, p95 and maximum of every time, in milliseconds."""
    rows: list[dict[str, str | float]] = []
    for field in fields(Sample):
        values = [asdict(sample)[field.name] * 1000 for sample in samples]
        found = {f"{key}_ms": round(float(np.quantile(values, share)), 3) for key, share in SHARES.items()}
        rows.append(
            {"durability": durability, "pause_s": pause_s, "time": field.name.replace("_to_", " → "), **found}
        )
    return rows


def describe(rows: list[dict[str, str | float]]) -> list[str]:
    """The legend of this module, then the rows as a table."""
    assert __doc__ is not None
    cells = [("SPOOL_DURABILITY", "pause s", "time", *(f"{key} ms" for key in SHARES))]
    cells += [
        tuple(f"{cell:.2f}" if isinstance(cell, float) else cell for cell in row.values()) for row in rows
    ]
    return [__doc__.partition("\n\n")[2].rpartition("\n\n")[0], "", *make_table(cells)]
