"""Fault 34: a request whose numbers are not finite, also in a real ring; and KV that runs short."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from tests.fakes.checkpoints import make_poisoned, shared_checkpoint
from tests.services.engine_in_process import EngineInProcess, given_draws
from tests.services.ring_service import RingService

POISON = 200
SHORT, LONG = [3, 1], [(7 * i + 5) % 190 for i in range(40)]


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_poisoned(tmp_path_factory.mktemp("models") / "tiny", "llama", POISON, num_hidden_layers=2)


def check_overflow(ring: EngineInProcess | RingService) -> None:
    """Ask for what fails, after and beside what does not, greedy and drawn."""
    alone = [ring.ask(ring.request(prompt, max_tokens=20))[0] for prompt in (SHORT, LONG)]
    for temperature in (0.0, 0.7):
        (failed,) = ring.ask(ring.request([5, POISON, *LONG], temperature=temperature))
        assert failed.error is not None
        assert (failed.error["code"], failed.error["status"]) == ("non_finite", 500)
        after = ring.ask(*(ring.request(prompt, max_tokens=20) for prompt in (SHORT, LONG)))
        beside = ring.ask(*(ring.request(prompt, max_tokens=20) for prompt in (SHORT, [POISON, 1], LONG)))
        assert [each.token_ids for each in after] == [each.token_ids for each in alone]
        assert [beside[i].token_ids for i in (0, 2)] == [each.token_ids for each in alone]


@pytest.mark.parametrize("num_ranks", [1, 2])
@pytest.mark.parametrize("layers", ["mlx", "numpy"])
def test_it_fails_once_and_the_engine_goes_on(
    poisoned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_ranks: int, layers: str
) -> None:
    """One clear error, the log keeps what was drawn, others have their own text."""
    monkeypatch.setattr("distributed.engine.engine.Draws", given_draws({77: (1, 2, POISON)}))
    settings: dict[str, Any] = {"kv_cache_max_size": 0, "microbatches": 1, "cpu_layers": layers}
    with EngineInProcess(tmp_path, poisoned, num_ranks, **settings) as service:
        check_overflow(service)
        late = service.request(SHORT, max_tokens=9, seed=77)
        assert service.ask(late)[0].error is not None
        assert [record.token_id for record in service.records(late)] == [1, 2, POISON]


@pytest.mark.slow
def test_a_real_ring_goes_on_with_the_same_processes(poisoned: Path, tmp_path: Path) -> None:
    """No rank ends of it."""
    with RingService(tmp_path, poisoned, 2, kv_cache_max_size=0, microbatches=1) as ring:
        pids = [rank.pid for rank in ring.ranks]
        check_overflow(ring)
        assert [rank.pid for rank in ring.ranks if rank.poll() is None] == pids
        assert ring.stop() == [0, 0]


def test_rows_that_wait_for_kv_go_on_with_the_same_text(tmp_path: Path) -> None:
    """Six long answers where four fit: all end as they do alone, greedy and drawn."""
    model = shared_checkpoint("llama", num_hidden_layers=2, head_dim=32)
    rules = [{"temperature": 0.9, "seed": 3}, {}]
    prompts = [[(7 * i + 13 * j) % 250 for i in range(30 + 20 * j)] for j in range(6)]
    settings: dict[str, Any] = {"kv_cache_reserved_memory_mb": 1, "kv_cache_max_size": 0}
    with EngineInProcess(tmp_path / "state", model, 2, **settings) as service:
        asked = [service.request(prompt, max_tokens=200, **rules[i % 2]) for i, prompt in enumerate(prompts)]
        crowd = service.ask(*asked)
        assert service.scheduler.num_preemptions > 0
        alone = [service.ask(replace(request, id=f"{i:032x}"))[0] for i, request in enumerate(asked)]
    assert [each.token_ids for each in crowd] == [each.token_ids for each in alone]
