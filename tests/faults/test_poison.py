"""Fault 15: a request that brings the ring down, among others."""

from __future__ import annotations

import select
import signal
from pathlib import Path

import pytest

from spool import Result
from tests.checkpoints import make_checkpoint
from tests.ring_service import RingService

pytestmark = pytest.mark.slow

CRASHING_ID = 249
# What a model's bug would do: the process dies when this token comes to a stage.
HOOK = f"""
import distributed.stage as stage
run = stage.Stage.run
def crash(self, step, inputs, *others):
    if self.model.is_first and any({CRASHING_ID} in row for row in inputs.tolist()):
        import os
        os.abort()
    return run(self, step, inputs, *others)
stage.Stage.run = crash
"""
PROMPTS = [[(7 * i + 13 * j) % 240 for j in range(6 + i)] for i in range(3)]
MAX_LIVES = 8


def run_lives(ring: RingService, ids: list[str]) -> tuple[list[Result], int]:
    """Start the ring again each time it goes down, as the supervisor does, until all results are there."""
    spool = ring.spool()
    for num_lives in range(1, MAX_LIVES + 1):
        ring.kill()
        ring.start()
        with spool.listen("door-test") as bell:
            while ring.ranks[0].poll() is None:
                results = [spool.read_result(request_id) for request_id in ids]
                if all(results):
                    return [result for result in results if result is not None], num_lives
                select.select([bell], [], [], 0.2)
                bell.drain()
    raise AssertionError(f"not all ended in {MAX_LIVES} lives: {ring.log(0)}")


def test_a_poisonous_request_fails_after_three_solo_tries_and_the_others_finish(tmp_path: Path) -> None:
    """Four together: three give what they give alone, the fourth ends as poison."""
    model = make_checkpoint(tmp_path / "tiny-llama", "llama")
    hook = tmp_path / "hook"
    hook.mkdir()
    with RingService(tmp_path / "state", model, 2) as ring:
        alone = [ring.ask(ring.request(prompt, max_tokens=30))[0] for prompt in PROMPTS]
        ring.end()
        (hook / "ring_test_hook.py").write_text(HOOK)
        (hook / "sitecustomize.py").write_text(IMPORT_LATER)
        ring.settings["PYTHONPATH"] = str(hook)
        poison = ring.request([5, CRASHING_ID, 6], max_tokens=30)
        requests = [*(ring.request(prompt, max_tokens=30) for prompt in PROMPTS), poison]
        for request in requests:
            ring.spool().submit(request)
        results, num_lives = run_lives(ring, [request.id for request in requests])
        ring.ranks[0].send_signal(signal.SIGTERM)
    assert [result.token_ids for result in results[:3]] == [result.token_ids for result in alone]
    assert results[3].error is not None
    assert results[3].error["code"] == "poison"
    assert num_lives <= 5  # together, three times alone, and the life that says so


# Patches the stage once its module is there: importing it here would load MLX before the fast BLAS.
IMPORT_LATER = """
import sys, importlib.abc, importlib.util
class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "distributed.joining":
            return None
        sys.meta_path.remove(self)
        import ring_test_hook
        return importlib.util.find_spec(name)
sys.meta_path.insert(0, Finder())
"""


def test_kills_from_outside_condemn_nobody(tmp_path: Path) -> None:
    """Five kills in a row while answers grow: all of them end well."""
    model = make_checkpoint(tmp_path / "tiny-llama", "llama")
    with RingService(tmp_path / "state", model, 2) as ring:
        alone = [ring.ask(ring.request(prompt, max_tokens=300))[0] for prompt in PROMPTS]
        requests = [ring.request(prompt, max_tokens=300) for prompt in PROMPTS]
        spool = ring.spool()
        for request in requests:
            spool.submit(request)
        for _ in range(5):
            reader = spool.open_log(requests[0].id)
            num_before = len(reader.read_new())
            with spool.listen("door-test") as bell:
                while len(reader.read_new()) == 0 and spool.read_result(requests[0].id) is None:
                    select.select([bell], [], [], 0.2)
                    bell.drain()
            assert reader.next_index >= num_before
            ring.kill()
            ring.start()
        with spool.listen("door-test") as bell:
            results = [ring.wait(spool, bell, request.id) for request in requests]
    assert [result.token_ids for result in results] == [result.token_ids for result in alone]
