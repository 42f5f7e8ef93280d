"""`bench agreement`: start the service, ask in parallel, ask the same one at a time, stop, and compare.

The judging is agreement.py's.
"""

from __future__ import annotations

import random
import sys
import time
from dataclasses import asdict

from bench.agreement import check_agreement
from bench.dialects import Ask
from bench.ground import make_ground, only_one
from bench.measuring import ask_alone, ask_server, warm_up
from bench.ours import Ours
from bench.progress import Progress
from bench.records import plain, write_run
from bench.report import describe_contender
from bench.workload import make_prompts


def run_agreement(num_clients: int, max_tokens: int, seed: int, progress: Progress, *, as_json: bool) -> int:
    """Check and print; 0 if nothing is mixed up or wrong, else 1."""
    started_unix = time.time()
    ground = make_ground()
    prompts = make_prompts(random.Random(f"{seed}/agreement"), num_clients)
    asks = [Ask(prompt, max_tokens) for prompt in prompts]
    with only_one(ground):
        progress.line("starting")
        ours = Ours(ground)
        with ours.running() as server:
            warm_up(server)
            progress.line(f"{num_clients} at once")
            parallel = ask_server(server, asks, num_clients).replies
        progress.line("the same, one at a time, in a new life of the service")
        solo = ask_alone(ours, asks)
        progress.line("the answers against mlx-lm's own model")
        agreement = check_agreement(ground, asks, parallel, solo)
    data = {
        "started_unix": started_unix,
        "contenders": [ours.describe()],
        "agreement": asdict(agreement),
        "parallel": [reply.token_ids for reply in parallel],
        "solo": [reply.token_ids for reply in solo],
    }
    path = write_run(ground.folder, "agreement", plain(data))
    if as_json:
        sys.stdout.write(path.read_text(encoding="utf-8") + "\n")
    else:
        print("\n".join([*describe_contender(ours.describe()), "", *agreement.lines(), f"Raw data: {path}"]))
    return 0 if agreement.is_good else 1
