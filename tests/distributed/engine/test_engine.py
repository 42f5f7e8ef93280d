"""The engine's loop in one process, with real frames, stages and spool and a clock of the test's own."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from distributed.backends.mlx import MlxRunner
from distributed.engine.engine import PING_SECONDS
from distributed.ring.ring import RingLost
from tests.fakes.checkpoints import make_checkpoint
from tests.fakes.stand_in_gpu import StandInGpu
from tests.services.engine_in_process import EngineInProcess

PROMPTS = [[(7 * i + 13 * j) % 250 for j in range(5 + 9 * i)] for i in range(4)]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("models") / "tiny-llama", "llama")


def test_any_cut_gives_the_same_tokens(llama: Path, tmp_path: Path) -> None:
    """Greedy and drawn, several at once, prompts longer than a chunk among them."""
    answers = []
    for split in ("4", "3,1", "1,2,1", "1,1,1,1"):
        num_ranks = len(split.split(","))
        state = tmp_path / split
        with EngineInProcess(state, llama, num_ranks, layer_split=split, prefill_chunk_tokens=16) as service:
            rules = [{"temperature": 0.8, "seed": 3}, {"temperature": 0.0}]
            requests = [service.request(prompt, **rules[i % 2]) for i, prompt in enumerate(PROMPTS)]
            results = service.ask(*requests)
            service.stop()
        answers.append([result.token_ids for result in results])
        assert [rank["num_frames"] > 0 for rank in results[0].performance["ranks"]] == [True] * num_ranks
    assert all(answer == answers[0] for answer in answers)


def test_an_answer_goes_on_in_the_next_life(llama: Path, tmp_path: Path) -> None:
    """Logged tokens stay; the whole answer is that of an undisturbed ring."""
    with EngineInProcess(tmp_path, llama, 2) as service:
        (whole,) = service.ask(service.request(PROMPTS[0], max_tokens=30))
        request = service.request(PROMPTS[0], max_tokens=30)
        service.submit(request)
        service.run_until(lambda: len(service.records(request)) == 10)
        service.kill()
        service.start()
        assert len(service.records(request)) == 10
        (result,) = service.results(request)
    assert (result.token_ids, result.text) == (whole.token_ids, whole.text)


def test_what_does_not_end_in_time_is_put_back(llama: Path, tmp_path: Path) -> None:
    """A drain without any time logs the tokens in flight and launches nothing."""
    with EngineInProcess(tmp_path, llama, 2, shutdown_timeout=0) as service:
        request = service.request(PROMPTS[0], max_tokens=60, ignore_eos=True)
        service.submit(request)
        service.run_until(lambda: len(service.records(request)) == 10)
        service.stop()
        assert service.spool().state(request.id) == "waiting"
        assert service.status()["phase"] == "stopped"
        service.start()
        (result,) = service.results(request)
    assert result.usage.completion_tokens == 60


def test_a_request_without_a_ring_of_the_bell_is_found_at_the_next_look(llama: Path, tmp_path: Path) -> None:
    """The folders are the truth: no request waits longer than POLL_INTERVAL."""
    with EngineInProcess(tmp_path, llama, poll_interval=7) as service:
        service.step()
        service.submit(request := service.request(PROMPTS[0]))
        service.bell.drain()
        start = service.clock.now
        service.results(request)
        assert 5 < service.clock.now - start < 8


def test_a_row_that_becomes_free_does_not_wait_for_the_next_poll(llama: Path, tmp_path: Path) -> None:
    """Requests that find no row stay in the spool; POLL_INTERVAL is for lost rings only."""
    one_row = {"microbatches": 1, "max_rows_per_microbatch": 1}
    with EngineInProcess(tmp_path, llama, 1, dtype=None, poll_interval=50, **one_row) as service:
        start = service.clock.now
        service.ask(*(service.request(prompt, max_tokens=4) for prompt in PROMPTS))
        assert service.clock.now - start < 1


def test_an_idle_ring_proves_that_it_is_whole(llama: Path, tmp_path: Path) -> None:
    """By an empty lap; if it does not return within STEP_TIMEOUT, the ring ends."""
    with EngineInProcess(tmp_path, llama, 2, step_timeout=30) as service:
        for _ in range(3):
            service.advance(PING_SECONDS + 1)
        start = service.clock.now
        service.wire.is_silent = True
        with pytest.raises(RingLost, match="no frame came back within STEP_TIMEOUT=30 s"):
            service.run_until(lambda: service.clock.now > start + 60)
        assert 30 < service.clock.now - start < 40


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_idle_gpus_are_kept_awake_for_some_minutes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_ranks: int
) -> None:
    """Twice a second on every rank, until KEEP_WARM_MINUTES after the last request; live, and 0 is off."""
    touched: list[float] = []
    monkeypatch.setattr("tests.services.engine_in_process.choose_backend", lambda *_: StandInGpu())
    monkeypatch.setattr(MlxRunner, "touch", staticmethod(lambda: touched.append(service.clock.now)))
    service = EngineInProcess(tmp_path, make_checkpoint(tmp_path / "own", "llama"), num_ranks)

    def count(num_seconds: float) -> int:
        touched.clear()
        end = service.clock.now + num_seconds
        service.run_until(lambda: service.clock.now > end)
        return len(touched)

    with service:
        service.ask(service.request(PROMPTS[0], max_tokens=3))
        assert 2 * 50 * num_ranks * 0.6 < count(50) <= 2 * 50 * num_ranks
        service.edit(KEEP_WARM_MINUTES=1)
        assert count(20)
        assert not count(20)
        service.edit(KEEP_WARM_MINUTES=0)
        service.ask(service.request(PROMPTS[0], max_tokens=3))
        assert not count(20)


def test_a_cpu_is_not_kept_awake(llama: Path, tmp_path: Path) -> None:
    """Rounds stay seldom, whoever runs its layers."""
    for dtype in (None, "float32"):
        with EngineInProcess(tmp_path / str(dtype), llama, 1, dtype=dtype) as service:
            assert service.stages[0].runner.touch is None


def test_a_lost_lap_ends_the_ring_and_no_request(llama: Path, tmp_path: Path) -> None:
    """The next epoch finishes the running requests."""
    with EngineInProcess(tmp_path, llama, 2, step_timeout=30) as service:
        service.submit(request := service.request(PROMPTS[1]))
        service.run_until(lambda: len(service.records(request)) == 3)
        service.wire.is_lost = True
        with pytest.raises(RingLost):
            service.step()
        service.kill()
        service.start()
        (result,) = service.results(request)
    assert result.finish_reason == "length"


def test_a_cancel_takes_effect_between_two_steps(llama: Path, tmp_path: Path) -> None:
    """The other answer equals its solo run."""
    with EngineInProcess(tmp_path, llama, 2) as service:
        (alone,) = service.ask(service.request(PROMPTS[3]))
        doomed, neighbour = service.request(PROMPTS[2], max_tokens=300), service.request(PROMPTS[3])
        service.submit(doomed, neighbour)
        service.run_until(lambda: len(service.records(doomed)) > 2)
        assert service.cancel(doomed)
        ended, other = service.results(doomed, neighbour)
    assert ended.finish_reason == "cancelled"
    assert 0 < ended.usage.completion_tokens < 300
    assert other.token_ids == alone.token_ids


def test_live_settings_reach_the_loop(llama: Path, tmp_path: Path) -> None:
    """The poll interval counts from the next look on."""
    with EngineInProcess(tmp_path, llama, poll_interval=50) as service:
        service.step()
        service.edit(POLL_INTERVAL=1)
        service.advance(51)
        service.submit(request := service.request(PROMPTS[0]))
        service.bell.drain()
        start = service.clock.now
        service.results(request)
        assert service.clock.now - start < 2


def test_a_signal_wakes_the_loop_once(llama: Path, tmp_path: Path) -> None:
    """A drain waits for frames as any turn does, and does not spin."""
    with EngineInProcess(tmp_path, llama, poll_interval=7) as service:
        service.step()
        service.signal()
        starts = []
        for _ in range(3):
            starts.append(service.clock.now)
            service.step()
        assert starts[1] - starts[0] < 0.1 < 0.5 < starts[2] - starts[1]


@pytest.mark.parametrize("seed", range(6))
def test_whatever_happens_each_request_ends_with_its_own_tokens(
    llama: Path, tmp_path: Path, seed: int
) -> None:
    """Kills, drains, cancels and idle seconds at any turn, beside others of both classes, with little KV."""
    source = random.Random(seed)
    num_ranks, num_rows = source.randint(1, 3), source.randint(1, 4)
    settings: dict[str, Any] = {"max_rows_per_microbatch": num_rows, "kv_cache_reserved_memory_mb": 1}
    settings |= {"prefill_chunk_tokens": 16, "shutdown_timeout": 0}
    with EngineInProcess(tmp_path, llama, num_ranks, **settings) as service:
        rules: list[dict[str, Any]] = [{"temperature": 0.8, "seed": seed}, {"temperature": 0.0}]
        rules.append({"temperature": 1.0, "grammar": "start: /[a-f]{20,40}/"})
        requests = [
            replace(
                service.request(source.choice(PROMPTS), max_tokens=source.randint(1, 40), **rules[i % 3]),
                priority=source.choice((5, 9)),
            )
            for i in range(8)
        ]
        alone = [service.ask(replace(request, id=f"{i:032x}"))[0] for i, request in enumerate(requests)]
        waiting, cancelled = list(requests), set()
        while waiting or not all(service.result(request) for request in requests):
            match source.choices(("turn", "ask", "idle", "cancel", "drain", "kill"), (90, 4, 2, 1, 1, 2))[0]:
                case "ask" if waiting:
                    service.submit(waiting.pop())
                case "idle":
                    service.advance(source.uniform(0.1, 3))
                case "cancel":
                    request = source.choice(requests)
                    if service.cancel(request):
                        cancelled.add(request.id)
                case "drain":
                    service.stop()
                    service.start()
                case "kill":
                    service.kill()
                    service.start()
                case _:
                    service.step()
        results = service.results(*requests)
    for request, result, undisturbed in zip(requests, results, alone, strict=True):
        if result.finish_reason == "cancelled":
            assert request.id in cancelled
        else:
            assert (result.token_ids, result.text) == (undisturbed.token_ids, undisturbed.text)
