"""What the file queue itself costs on an idle service, with SPOOL_DURABILITY=process and power.

One request at a time, each of one token, streamed from /generate: after a pause, in which every process has
gone to sleep and the processor's caches belong to others, and as soon as the last one is answered. Taken of
each:

    sent → received      from the client's clock just before it writes the POST to the front door's when
                         the first bytes came out of its socket: the client, the kernel, a wake
    received → accepted  from there to just before submit (performance.accept_s): HTTP, checks, chat
                         template, tokenizing
    accepted → claimed   from there to rank 0's clock at the claim (performance.queue_s): submit, which
                         power has to sync, doorbell, claim
    received → claimed   the last two: all that the service itself needs to begin
    sent → claimed       all three
    logged → token       from rank 0's clock just before it appends the token to the log (it is the only, so
                         the last one) to the client's, when the token's event has come out of the socket:
                         log, doorbell, front door, HTTP
    logged → done        the same to the event with the result, which is a file that power has to sync

All clocks are time.time() of one machine; rank 0's are worked out from the result file (finished_unix) and
its performance. Knows the spool's results and nothing of how they are written.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.contender import BenchError
from bench.dialects import Ask, Reply
from bench.ground import Ground, make_ground, only_one
from bench.load import Server
from bench.machine import busy_ratio, describe_busy, describe_machine
from bench.measuring import ask_server, warm_up
from bench.ours import Ours
from bench.progress import Progress
from bench.records import write_run
from bench.report import describe_contender, describe_ground
from bench.summary import percentile
from bench.workload import make_prompts
from cluster.terminal import make_table
from spool import Result, Spool

PAUSES_S = (0.1, 0.0)  # between an answer and the next request
DURABILITIES = ("process", "power")
TIMES = {
    "sent_to_received_s": "sent → received",
    "received_to_accepted_s": "received → accepted",
    "accepted_to_claimed_s": "accepted → claimed",
    "received_to_claimed_s": "received → claimed",
    "sent_to_claimed_s": "sent → claimed",
    "logged_to_token_s": "logged → token on the socket",
    "logged_to_done_s": "logged → done on the socket",
}


@dataclass(frozen=True)
class Sample:
    """The times of one request, in seconds."""

    sent_to_received_s: float
    received_to_accepted_s: float
    accepted_to_claimed_s: float
    received_to_claimed_s: float
    sent_to_claimed_s: float
    logged_to_token_s: float
    logged_to_done_s: float


def make_sample(reply: Reply, result: Result) -> Sample:
    """Put the client's times and rank 0's together."""
    times = result.performance
    accepted_unix = result.finished_unix - float(times["total_s"])
    logged_unix = accepted_unix + float(times["ttft_s"])
    accept_s, queue_s = float(times["accept_s"]), float(times["queue_s"])
    # The reply's times are of a monotonic clock: hang them on the wall clock at the sending.
    offset = reply.sent_unix - reply.sent_s
    return Sample(
        sent_to_received_s=accepted_unix - accept_s - reply.sent_unix,
        received_to_accepted_s=accept_s,
        accepted_to_claimed_s=queue_s,
        received_to_claimed_s=accept_s + queue_s,
        sent_to_claimed_s=accepted_unix + queue_s - reply.sent_unix,
        logged_to_token_s=offset + reply.text_times_s[-1] - logged_unix,
        logged_to_done_s=offset + reply.end_s - logged_unix,
    )


def run_overhead(num_requests: int, seed: int, progress: Progress, *, as_json: bool) -> int:
    """Measure both durabilities and print a table; 0."""
    started_unix = time.time()
    ground = make_ground()
    samples: dict[tuple[str, float], list[Sample]] = {}
    described = []
    with only_one(ground):
        quiet = describe_busy(busy_ratio())
        for durability in DURABILITIES:
            progress.line(f"SPOOL_DURABILITY={durability}: starting")
            ours = Ours(ground, {"SPOOL_DURABILITY": (durability, "what is measured")})
            with ours.running() as server:
                warm_up(server)
                for pause_s in PAUSES_S:
                    progress.line(
                        f"SPOOL_DURABILITY={durability}: {num_requests} requests, {pause_s:g} s apart"
                    )
                    samples[durability, pause_s] = measure(server, ours, num_requests, seed, pause_s)
            described.append(ours.describe())
    rows = make_rows(samples)
    data = {
        "started_unix": started_unix,
        "machine": describe_machine(),
        "contenders": described,
        "doubts": [quiet] if quiet else [],
        "summary": rows,
        "samples": [
            {"durability": durability, "pause_s": pause_s, "requests": [vars(sample) for sample in found]}
            for (durability, pause_s), found in samples.items()
        ],
    }
    path = write_run(ground.folder, "overhead", data)
    if as_json:
        sys.stdout.write(path.read_text(encoding="utf-8") + "\n")
    else:
        print_overhead(ground, data, rows)
        print(f"\nRaw data: {path}")
    return 0


def measure(server: Server, ours: Ours, num_requests: int, seed: int, pause_s: float) -> list[Sample]:
    """Ask one by one, then look up each result file."""
    prompts = make_prompts(random.Random(f"{seed}/overhead/{pause_s:g}"), num_requests)
    asks = [Ask(prompt, max_tokens=1) for prompt in prompts]
    replies = []
    for ask in asks:
        replies += ask_server(server, [ask], 1).replies
        time.sleep(pause_s)
    spool = Spool.open(ours.settings.spool_dir, durability=ours.settings.spool_durability)
    samples = []
    for reply in replies:
        result = spool.read_result(reply.id) if reply.error is None else None
        if result is None:
            raise BenchError(f"a request was not answered: {reply.error or 'it has no result file'}")
        samples.append(make_sample(reply, result))
    return samples


def make_rows(samples: dict[tuple[str, float], list[Sample]]) -> list[dict[str, Any]]:
    """Medians and p95 of every time, in milliseconds, by durability and pause."""
    rows = []
    for (durability, pause_s), found in samples.items():
        for name, title in TIMES.items():
            values = [getattr(sample, name) * 1000 for sample in found]
            row = {"durability": durability, "pause_s": pause_s, "time": title, "num_requests": len(values)}
            rows.append({**row, **{f"{key}_ms": percentile(values, share) for key, share in SHARES.items()}})
    return rows


SHARES = {"median": 0.5, "p95": 0.95, "max": 1.0}


def print_overhead(ground: Ground, data: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
    """Print what was measured and how."""
    assert __doc__ is not None
    print("\n" + "\n".join(describe_ground(data["machine"], str(ground.model_folder), ground.num_ranks)))
    print("\n".join(describe_contender(data["contenders"][0])))
    print("\n" + __doc__.partition("\n\n")[2].rpartition("\n\n")[0])
    cells = [("SPOOL_DURABILITY", "pause", "time", "requests", "median ms", "p95 ms", "max ms")]
    for row in rows:
        figures = [f"{row[f'{key}_ms']:.2f}" for key in SHARES]
        pause = f"{row['pause_s']:g} s"
        cells.append((row["durability"], pause, row["time"], str(row["num_requests"]), *figures))
    print("\n" + "\n".join(make_table(cells)))
    for doubt in data["doubts"]:
        print(f"Doubt: {doubt}")
