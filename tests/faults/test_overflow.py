"""Fault 34: a request whose numbers are not finite, in a ring of real processes; and KV that runs short."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.checkpoints import make_checkpoint
from tests.local_ring import make_poisoned
from tests.ring_service import RingService

pytestmark = pytest.mark.slow

POISON = 200
SHORT, LONG = [3, 1], [(7 * i + 5) % 190 for i in range(40)]


@pytest.mark.parametrize("num_ranks", [1, 2])
@pytest.mark.parametrize("layers", ["mlx", "numpy"])
def test_it_fails_once_and_the_ring_goes_on(tmp_path: Path, num_ranks: int, layers: str) -> None:
    """Greedy and drawn: one clear error, the log keeps what was drawn, others have their own text."""
    model = make_poisoned(tmp_path / "tiny", "llama", POISON)
    settings = {"kv_cache_max_size": 0, "microbatches": 1, "cpu_layers": layers}
    with RingService(tmp_path / "state", model, num_ranks, **settings) as ring:
        pids = [rank.pid for rank in ring.ranks]
        alone = [ring.ask(ring.request(prompt, max_tokens=20))[0] for prompt in (SHORT, LONG)]
        for temperature in (0.0, 0.7):
            bad = ring.request([5, POISON, *LONG], temperature=temperature)
            (failed,) = ring.ask(bad)
            assert failed.error is not None
            assert (failed.error["code"], failed.error["status"]) == ("non_finite", 500)
            after = ring.ask(*(ring.request(prompt, max_tokens=20) for prompt in (SHORT, LONG)))
            beside = ring.ask(*(ring.request(prompt, max_tokens=20) for prompt in (SHORT, [POISON, 1], LONG)))
            assert [each.token_ids for each in after] == [each.token_ids for each in alone]
            assert [beside[i].token_ids for i in (0, 2)] == [each.token_ids for each in alone]
        late = replace(ring.request(SHORT, max_tokens=9), forced_token_ids=(1, 2, POISON))
        assert ring.ask(late)[0].error is not None
        logged = ring.spool().open_log(late.id).read_new()
        assert [record.token_id for record in logged] == [1, 2, POISON]
        assert [rank.pid for rank in ring.ranks if rank.poll() is None] == pids
        assert ring.stop() == [0] * num_ranks


def wait_for_preemptions(path: Path) -> None:
    """Wait until the status, which comes once a second, says that rows were put back."""
    deadline = time.monotonic() + 20
    while not json.loads(path.read_text())["kv"].get("num_preemptions"):
        assert time.monotonic() < deadline, path.read_text()
        time.sleep(0.05)


def test_rows_that_wait_for_kv_go_on_with_the_same_text(tmp_path: Path) -> None:
    """Eight long answers where four fit: all end as they do alone, greedy and drawn."""
    model = make_checkpoint(tmp_path / "tiny", "llama")
    rules = [{"temperature": 0.9, "seed": 3}, {}]
    prompts = [[(7 * i + 13 * j) % 250 for i in range(30 + 20 * j)] for j in range(8)]
    settings = {"kv_cache_reserved_memory_mb": 1, "kv_cache_max_size": 0}
    with RingService(tmp_path / "state", model, 2, **settings) as ring:
        asked = [ring.request(prompt, max_tokens=400, **rules[i % 2]) for i, prompt in enumerate(prompts)]
        crowd = ring.ask(*asked)
        wait_for_preemptions(tmp_path / "state" / "run" / "ring.json")
        alone = [ring.ask(replace(request, id=f"{i:032x}"))[0] for i, request in enumerate(asked)]
    assert [each.token_ids for each in crowd] == [each.token_ids for each in alone]
