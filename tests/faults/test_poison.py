"""Fault 15: a request that brings the ring down, among others."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distributed.backends.stage import Stage
from spool import MAX_SOLO_CRASHES, EntryName, Result
from tests.fakes.checkpoints import shared_checkpoint
from tests.services.engine_in_process import EngineInProcess
from tests.services.ring_service import RingService

CRASHING_ID = 249
PROMPTS = [[(7 * i + 13 * j) % 240 for j in range(6 + i)] for i in range(3)]


@pytest.fixture(scope="module")
def llama() -> Path:
    return shared_checkpoint("llama", num_hidden_layers=2)


class Crash(BaseException):
    """What ends the process in a test that has only one."""


def test_a_poisonous_request_fails_after_three_solo_tries_and_the_others_finish(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four together: three give what they give alone, the fourth ends as poison."""
    run = Stage.run

    def run_or_crash(stage: Stage, step: Any, inputs: Any, *others: Any) -> Any:
        if stage.model.is_first and any(CRASHING_ID in row for row in inputs.tolist()):
            raise Crash
        return run(stage, step, inputs, *others)

    monkeypatch.setattr(Stage, "run", run_or_crash)
    with EngineInProcess(tmp_path, llama, 2) as service:
        alone = [service.ask(service.request(prompt, max_tokens=30))[0] for prompt in PROMPTS]
        poison = service.request([5, CRASHING_ID, 6], max_tokens=30)
        requests = [*(service.request(prompt, max_tokens=30) for prompt in PROMPTS), poison]
        service.submit(*requests)
        results: list[Result] = []
        num_lives = 1
        while not results:
            try:
                results = service.results(*requests)
            except Crash:
                num_lives += 1
                service.kill()
                service.start()
    assert [result.token_ids for result in results[:3]] == [result.token_ids for result in alone]
    assert results[3].error is not None
    assert results[3].error["code"] == "poison"
    assert num_lives <= 2 + MAX_SOLO_CRASHES  # together, three times alone, and the life that says so


def test_kills_from_outside_make_no_request_poison(llama: Path, tmp_path: Path) -> None:
    """Five kills in a row while answers grow: all of them end well."""
    with EngineInProcess(tmp_path, llama, 2) as service:
        alone = [service.ask(service.request(prompt, max_tokens=60))[0] for prompt in PROMPTS]
        requests = [service.request(prompt, max_tokens=60) for prompt in PROMPTS]
        service.submit(*requests)
        for _ in range(5):
            num_before = len(service.records(requests[0]))
            while len(service.records(requests[0])) == num_before:
                service.step()
            service.kill()
            service.start()
        results = service.results(*requests)
    assert [result.token_ids for result in results] == [result.token_ids for result in alone]


# Runs a rank that dies when this token is to be stepped, as of a bug.
CRASHING_RANK = f"""
import os, runpy, sys
from distributed.engine.scheduler import Scheduler
schedule = Scheduler.schedule
def schedule_or_crash(self):
    microbatch = schedule(self)
    if microbatch and any({CRASHING_ID} in row.token_ids for row in microbatch.rows):
        os.abort()
    return microbatch
Scheduler.schedule = schedule_or_crash
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
def test_the_process_after_one_that_died_of_a_request_knows_it(llama: Path, tmp_path: Path) -> None:
    """The third crash alone: the next one ends the request as poison, without a step, and goes on."""
    ring = RingService(tmp_path, llama, 1)
    spool, poison = ring.spool(), ring.request([5, CRASHING_ID, 6])
    spool.submit(poison)
    try:
        ring.spawn(prefixes={0: [sys.executable, "-c", CRASHING_RANK]})
        assert ring.ranks[0].wait(60) == -signal.SIGABRT
        ring.kill()
        (name,) = map(EntryName.parse, os.listdir(spool.folder.active))
        assert name is not None
        blamed = replace(name, is_suspect=True, num_solo_crashes=MAX_SOLO_CRASHES - 1, is_solo=True)
        (spool.folder.active / name.active).rename(spool.folder.active / blamed.active)
        ring.start()
        with spool.listen("door-test") as bell:
            result = ring.wait(spool, bell, poison.id)
        (other,) = ring.ask(ring.request(PROMPTS[0]))
    finally:
        ring.kill()
    assert result.error is not None
    assert (result.error["code"], other.error) == ("poison", None)
