"""The line on how two ranks share this machine's device: a rank's steps alone, and while another one steps.

Each rank has half of the model's layers, as in a ring of two on one machine. The second process steps without
a pause from the moment it is ready.
"""

from __future__ import annotations

import time

from distributed.self_test.reporting import Report, Task, await_ready, peer, say_ready
from distributed.self_test.steps import Stepper, load_stage

NUM_FIRST = 3


def run(task: Task, report: Report) -> None:
    """Report the line."""
    with report.attempt("shared-device"):
        stepper, count = Stepper(load_stage(task, 0, 2)), task.amounts.num_steps
        stepper.median_s(NUM_FIRST)
        alone_s = stepper.median_s(count)
        with peer("sharing-peer", task) as other:
            await_ready(other)
            until, beside = time.monotonic() + task.amounts.share_s, [stepper.median_s(1)]
            while time.monotonic() < until:
                beside.append(stepper.median_s(1))
        beside_s = sorted(beside)[len(beside) // 2]
        report.times("shared-device", {"step_alone": alone_s, "beside_another_rank": beside_s})


def run_peer(task: Task, report: Report) -> None:
    """Step until standard input ends."""
    stepper = Stepper(load_stage(task, 1, 2))
    stepper.median_s(NUM_FIRST)
    say_ready()
    while True:
        stepper.median_s(NUM_FIRST)
