"""Rings of one, two and three real processes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
from pathlib import Path

import mlx.core as mx
import pytest
from msgspec.structs import replace

from distributed import ring
from distributed.frame import Frame, Kind
from distributed.kv_sizes import most_tokens
from distributed.lifeline import EXIT_REFUSED, EXIT_RING_LOST, EXIT_SUPERVISOR_GONE
from prompts.mlx_lm_import import import_mlx_lm
from tests.checkpoints import VOCAB_SIZE, make_checkpoint, reference_model
from tests.ring_service import SECRET, RingService

pytestmark = pytest.mark.slow

PROMPTS = [[(7 * i + 13 * j) % 250 for j in range(5 + 9 * i)] for i in range(6)]
# Two logits closer than this may be ordered differently by another batch size.
MIN_GAP = 1e-3


@pytest.fixture(scope="module")
def deepseek(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("models") / "tiny-deepseek", "deepseek_v2")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("models") / "tiny-llama", "llama", num_hidden_layers=5)


def greedy(folder: Path, prompt: list[int], num_tokens: int) -> tuple[list[int], int]:
    """Generate with mlx-lm's own model in one process; also how many tokens are beyond doubt."""
    model = reference_model(folder)
    cache = import_mlx_lm("models.cache").make_prompt_cache(model)
    tokens: list[int] = []
    num_sure = num_tokens
    inputs = mx.array([prompt])
    for index in range(num_tokens):
        logits = model(inputs, cache=cache)[0, -1]
        best, second = mx.sort(logits)[::-1][:2].tolist()
        if best - second < MIN_GAP:
            num_sure = min(num_sure, index)
        tokens.append(int(mx.argmax(logits).item()))
        inputs = mx.array([tokens[-1:]])
    return tokens, num_sure


def test_only_connected_tcp_sockets_are_duplicated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """macOS kills a process that duplicates a file, pipe or socket that a system library guards."""
    listener = socket.create_server(("127.0.0.1", 0))
    one = socket.create_connection(listener.getsockname())
    other, _ = listener.accept()
    unix, unconnected = socket.socketpair(), socket.socket()
    connected = {one.fileno(), other.fileno()}
    duplicated: list[int] = []
    real_dup = os.dup

    def dup(descriptor: int) -> int:
        duplicated.append(descriptor)
        return real_dup(descriptor)

    with (tmp_path / "file").open("w"), monkeypatch.context() as patched:
        patched.setattr(os, "dup", dup)
        found = ring._connected_sockets()
    names = {entry.getsockname() for entry in found}
    assert connected <= set(duplicated)
    assert {one.getsockname(), other.getsockname()} <= names
    for descriptor in duplicated:  # what else is connected in this process is another test's
        with socket.socket(fileno=real_dup(descriptor)) as view:
            assert view.family in (socket.AF_INET, socket.AF_INET6)
            assert view.getpeername()
    for entry in (*found, *unix, unconnected, one, other, listener):
        entry.close()


@pytest.mark.parametrize("kind", [Kind.STOP, Kind.CACHE])
def test_the_next_rank_may_end_once_it_has_passed_stop_on(
    monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    """With three ranks it can be gone before the frame has come round; at any other time the ring is lost."""
    (receiving, other), (silent, next_rank) = socket.socketpair(), socket.socketpair()
    monkeypatch.setattr(ring, "_init_group", lambda *_: None)
    monkeypatch.setattr(ring, "_neighbour_sockets", lambda *_: (receiving, silent))
    monkeypatch.setattr(mx.distributed, "send", lambda array, *_, **__: array)
    made = ring.MlxRing(0, ["a:1", "b:2", "c:3"], 1, 1.0)
    made.send(Frame(kind, 1))
    next_rank.close()
    with pytest.raises(ring.RingLost) if kind is Kind.CACHE else contextlib.nullcontext():
        assert made.wait(0.0) == set()
    for each in (receiving, other, silent):
        each.close()


@pytest.mark.parametrize(("num_ranks", "split"), [(1, "auto"), (2, "auto"), (2, "3,1"), (3, "1,2,1")])
def test_a_ring_answers_as_one_process_does(
    deepseek: Path, tmp_path: Path, num_ranks: int, split: str
) -> None:
    """Six requests at once, prompts longer than a chunk among them, give mlx-lm's own greedy tokens."""
    with RingService(tmp_path, deepseek, num_ranks, layer_split=split, prefill_chunk_tokens=16) as ring:
        results = ring.ask(*(ring.request(prompt, max_tokens=12) for prompt in PROMPTS))
        assert ring.stop() == [0] * num_ranks
    for prompt, result in zip(PROMPTS, results, strict=True):
        tokens, num_sure = greedy(deepseek, prompt, 12)
        assert num_sure > 4
        assert list(result.token_ids[:num_sure]) == tokens[: len(result.token_ids)][:num_sure]
        assert result.usage.prompt_tokens == len(prompt)
        assert [rank["num_frames"] > 0 for rank in result.performance["ranks"]] == [True] * num_ranks
        assert sum(rank["num_layers"] for rank in result.performance["ranks"]) == 4


def test_guesses_save_laps_and_change_no_token(llama: Path, tmp_path: Path) -> None:
    """An answer that quotes its prompt takes fewer laps than tokens; free text stays the same."""
    quoted = [(17 * j) % 250 for j in range(40)]
    results = {}
    for speculation in ("off", "prompt-lookup"):
        with RingService(tmp_path / speculation, llama, 2, speculation=speculation) as ring:
            forced = replace(ring.request([*quoted, 3, 1, 4], max_tokens=40), forced_token_ids=tuple(quoted))
            free = ring.request(PROMPTS[3] * 3, max_tokens=40)
            results[speculation] = ring.ask(forced), ring.ask(free)
    num_laps = {}
    for speculation, ((told,), (free_answer,)) in results.items():
        assert told.token_ids == tuple(quoted)
        assert free_answer.token_ids == results["off"][1][0].token_ids
        num_laps[speculation] = told.performance["ranks"][1]["num_frames"]
    assert num_laps["off"] == 40
    assert num_laps["prompt-lookup"] <= 20


def test_shared_beginnings_change_no_token(deepseek: Path, tmp_path: Path) -> None:
    """Prompts that share a long opening, at once and one after the other, give what each gives alone."""
    opening = [(11 * j) % 250 for j in range(40)]
    prompts = [[*opening, *(17 * i + j for j in range(4 + i))] for i in range(8)]
    with RingService(tmp_path, deepseek, 2, prefill_chunk_tokens=64) as ring:
        results = ring.ask(*(ring.request(prompt, max_tokens=10) for prompt in prompts))
        again = ring.ask(ring.request(prompts[3], max_tokens=10))[0]
    assert sum(result.usage.cached_tokens >= 40 for result in results) >= 5
    assert again.usage.cached_tokens == len(prompts[3]) - 1
    for prompt, result in zip([*prompts, prompts[3]], [*results, again], strict=True):
        tokens, num_sure = greedy(deepseek, prompt, 10)
        assert list(result.token_ids[:num_sure]) == tokens[:num_sure]


def test_the_same_seed_gives_the_same_text_beside_others_and_alone(llama: Path, tmp_path: Path) -> None:
    """Sampling keys belong to requests: company changes nothing, another seed does."""
    with RingService(tmp_path, llama, 2) as ring:
        params = {"temperature": 1.0, "top_p": 0.9, "max_tokens": 24}
        alone = ring.ask(ring.request(PROMPTS[2], seed=11, **params))[0]
        among = ring.ask(*(ring.request(PROMPTS[2], seed=seed, **params) for seed in (11, 12, 13, 14)))
    assert among[0].token_ids == alone.token_ids
    assert len({result.token_ids for result in among}) == 4


def test_a_stop_string_ends_the_answer_before_itself(llama: Path, tmp_path: Path) -> None:
    """The text before the stop string is the answer; tokens after it are not."""
    with RingService(tmp_path, llama, 2) as ring:
        full = ring.ask(ring.request(PROMPTS[1], max_tokens=24))[0]
        stop = full.text[6:9]
        cut = ring.ask(ring.request(PROMPTS[1], max_tokens=24, stop=(stop,)))[0]
    assert cut.text == full.text[: full.text.index(stop)]
    assert cut.finish_reason == "stop"


def test_an_answer_goes_on_from_its_log_after_a_rank_was_killed(llama: Path, tmp_path: Path) -> None:
    """Kill -9 a rank in the middle: the others end at once, the ring's next life finishes the answer."""
    ring = RingService(tmp_path, llama, 2)
    with ring:
        whole = ring.ask(ring.request(PROMPTS[0], max_tokens=400))[0]
        spool = ring.spool()
        request = ring.request(PROMPTS[0], max_tokens=400)
        with spool.listen("door-test") as bell:
            spool.submit(request)
            reader = spool.open_log(request.id)
            seen = 0
            while seen < 20:
                bell.drain()
                seen += len(reader.read_new())
            os.kill(ring.ranks[1].pid, signal.SIGKILL)
            assert ring.ranks[0].wait(20) == EXIT_RING_LOST
            assert spool.read_result(request.id) is None
            ring.kill()
            ring.start()
            result = ring.wait(spool, bell, request.id)
    assert result.token_ids == whole.token_ids
    assert result.text == whole.text
    assert result.usage.completion_tokens == 400


def test_a_rank_with_another_secret_is_refused_by_name(llama: Path, tmp_path: Path) -> None:
    """HELLO ends the start with a sentence naming the rank and the difference."""
    ring = RingService(tmp_path, llama, 2)
    tmp_path.mkdir(exist_ok=True)
    try:
        ring.spawn(secrets=[SECRET, "0" * 48])
        assert ring.ranks[1].wait(90) == EXIT_REFUSED
        assert ring.ranks[0].wait(90) == EXIT_RING_LOST
    finally:
        ring.kill()
    assert "rank 1 has another ring secret than rank 0" in ring.log(1)


def test_ranks_end_when_their_supervisor_is_gone(llama: Path, tmp_path: Path) -> None:
    """End of file on standard input ends a rank, idle or not: nothing is orphaned."""
    with RingService(tmp_path, llama, 2) as ring:
        for rank in ring.ranks:
            assert rank.stdin is not None
            rank.stdin.close()
        codes = {rank.wait(20) for rank in ring.ranks}
    assert codes <= {EXIT_SUPERVISOR_GONE, EXIT_RING_LOST}
    assert EXIT_SUPERVISOR_GONE in codes


def test_a_second_rank_0_is_told_who_holds_the_spool(llama: Path, tmp_path: Path) -> None:
    """The lock names its holder and the second process ends."""
    with RingService(tmp_path, llama, 1) as first:
        second = RingService(tmp_path, llama, 1)
        try:
            second.spawn()
            assert second.ranks[0].wait(90) == EXIT_REFUSED
        finally:
            second.kill()
        assert str(first.ranks[0].pid) in second.log(0)


def test_a_request_that_can_never_run_fails_with_a_reason(llama: Path, tmp_path: Path) -> None:
    """Ids beyond the vocabulary and prompts beyond the context end at once; the next request is served."""
    with RingService(tmp_path, llama, 1, max_sequence_length=64, default_max_tokens=16) as ring:
        wrong, long, good = ring.ask(
            ring.request([VOCAB_SIZE + 5]), ring.request([5] * 64), ring.request(PROMPTS[0])
        )
    assert wrong.error is not None
    assert wrong.error["code"] == "invalid_prompt"
    assert long.error is not None
    assert long.error["code"] == "context_length_exceeded"
    assert good.finish_reason == "length"


def test_rank_0_says_how_long_a_context_is_and_holds_to_it(llama: Path, tmp_path: Path) -> None:
    """With auto that is what the KV reserve holds of two requests, where this is less than the model's."""
    with RingService(
        tmp_path, llama, 1, max_sequence_length="auto", default_max_tokens=16, kv_cache_reserved_memory_mb=1
    ) as ring:
        said = json.loads((tmp_path / "run" / "ring.json").read_text())
        num_tokens = said["context"]["max_tokens"]
        prompts = [[5 + i] * (num_tokens - 8) for i in range(2)]
        answers = ring.ask(*(ring.request(prompt, max_tokens=10**9, ignore_eos=True) for prompt in prompts))
    assert said["context"]["bound"] == "memory"
    assert num_tokens == most_tokens(2, said["kv"]["max_tokens"])
    assert [len(answer.token_ids) for answer in answers] == [8, 8]
    assert [answer.finish_reason for answer in answers] == ["length", "length"]


def test_a_cancelled_request_ends_and_its_neighbour_does_not_notice(llama: Path, tmp_path: Path) -> None:
    """Cancelling takes effect at a step boundary; the other answer is what it would have been alone."""
    with RingService(tmp_path, llama, 2) as ring:
        alone = ring.ask(ring.request(PROMPTS[3], max_tokens=60))[0]
        spool = ring.spool()
        doomed, neighbour = ring.request(PROMPTS[2], max_tokens=3000), ring.request(PROMPTS[3], max_tokens=60)
        with spool.listen("door-test") as bell:
            spool.submit(doomed)
            spool.submit(neighbour)
            reader = spool.open_log(doomed.id)
            while not reader.read_new():
                bell.drain()
            assert spool.cancel(doomed.id)
            ended = ring.wait(spool, bell, doomed.id)
            other = ring.wait(spool, bell, neighbour.id)
    assert ended.finish_reason == "cancelled"
    assert 0 < ended.usage.completion_tokens < 3000
    assert other.token_ids == alone.token_ids
