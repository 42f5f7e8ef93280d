"""Rings of one, two and three real processes: answers, ends and refused starts."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from pathlib import Path

import mlx.core as mx
import pytest

from config import load_settings
from config.simulated import SimulatedModel
from distributed.models.simulated import make_simulated
from distributed.rank import open_spool
from distributed.ring import ring
from distributed.ring.frame import Frame, Kind
from distributed.ring.watchdog import EXIT_REFUSED, EXIT_RING_LOST, EXIT_SUPERVISOR_GONE
from spool import EntryName
from tests.fakes.checkpoints import reference_model, shared_checkpoint
from tests.services.ring_service import SECRET, RingService
from tests.services.stages import expected_ids, sure_tokens

pytestmark = pytest.mark.slow

PROMPTS = [[(7 * i + 13 * j) % 250 for j in range(5 + 9 * i)] for i in range(6)]
# Waits in the place of a model: what is asked of it is still under way when a test ends the ring.
SLOW = "simulated:layers=4,layer_us=1000,row_us=0,token_us=0,hidden=16"
NUM_TOKENS = 240


@pytest.fixture(scope="module")
def expected() -> list[list[int]]:
    """What mlx-lm's own model answers, as far as it is beyond doubt."""
    model = reference_model(shared_checkpoint("deepseek_v2"))
    return [sure_tokens(model, prompt, 12) for prompt in PROMPTS]


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "slow"
    make_simulated(SLOW, folder)
    return folder


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


@pytest.mark.parametrize("split", ["auto", "3,1", "1,2,1"])
def test_a_ring_answers_as_one_process_does(expected: list[list[int]], tmp_path: Path, split: str) -> None:
    """Six requests at once, prompts longer than a chunk among them, give mlx-lm's own greedy tokens."""
    model, num_ranks = shared_checkpoint("deepseek_v2"), len(split.split(","))
    with RingService(tmp_path, model, num_ranks, layer_split=split, prefill_chunk_tokens=16) as ring:
        results = ring.ask(*(ring.request(prompt, max_tokens=12) for prompt in PROMPTS))
        assert ring.stop() == [0] * num_ranks
    for prompt, result, sure in zip(PROMPTS, results, expected, strict=True):
        assert len(sure) > 4
        assert list(result.token_ids[: len(sure)]) == sure[: len(result.token_ids)]
        assert result.usage.prompt_tokens == len(prompt)
        assert [rank["num_frames"] > 0 for rank in result.performance["ranks"]] == [True] * num_ranks
        assert sum(rank["num_layers"] for rank in result.performance["ranks"]) == 4


def test_an_answer_goes_on_whatever_ended_the_ring(slow: Path, tmp_path: Path) -> None:
    """SIGTERM with no time to drain, kill -9 of a rank; and ranks without a supervisor end.

    SIGTERM ends every rank with 0 and puts the request back without counting the attempt.
    """
    ring = RingService(tmp_path, slow, 2, shutdown_timeout=0)
    request = ring.request(PROMPTS[1], max_tokens=NUM_TOKENS)
    with ring:
        spool = ring.spool()
        spool.submit(request)
        ring.read_until(request.id, 10)
        assert ring.stop() == [0, 0]
        (name,) = map(EntryName.parse, os.listdir(spool.folder.incoming))
        assert name is not None
        assert (name.id, name.attempt, name.is_suspect) == (request.id, 1, False)
        num_kept = len(spool.open_log(request.id).read_new())
        ring.kill()

        ring.start()
        ring.read_until(request.id, num_kept + 10)
        os.kill(ring.ranks[1].pid, signal.SIGKILL)
        assert ring.ranks[0].wait(20) == EXIT_RING_LOST
        assert spool.read_result(request.id) is None
        ring.kill()

        ring.start()
        result = ring.wait_for(request.id)
        for rank in ring.ranks:
            assert rank.stdin is not None
            rank.stdin.close()
        codes = {rank.wait(20) for rank in ring.ranks}
    assert list(result.token_ids) == expected_ids(SimulatedModel.from_name(SLOW), PROMPTS[1], NUM_TOKENS)
    records = spool.open_log(request.id).read_new()
    assert [record.index for record in records] == list(range(NUM_TOKENS))
    assert "".join(record.text for record in records) == result.text
    assert EXIT_SUPERVISOR_GONE in codes <= {EXIT_SUPERVISOR_GONE, EXIT_RING_LOST}


def test_a_rank_with_another_secret_is_refused_by_name(slow: Path, tmp_path: Path) -> None:
    """HELLO ends the start with a sentence naming the rank and the difference."""
    ring = RingService(tmp_path, slow, 2)
    try:
        ring.spawn(secrets=[SECRET, "0" * 48])
        assert ring.ranks[1].wait(90) == EXIT_REFUSED
        assert ring.ranks[0].wait(90) == EXIT_RING_LOST
    finally:
        ring.kill()
    assert "rank 1 has another ring secret than rank 0" in ring.log(1)


def test_a_second_rank_0_is_told_who_holds_the_spool(slow: Path, tmp_path: Path) -> None:
    """The lock names its holder and the second process ends."""
    second = RingService(tmp_path, slow, 1)
    with open_spool(load_settings(second.settings, root=tmp_path, environ={})):
        try:
            second.spawn()
            assert second.ranks[0].wait(90) == EXIT_REFUSED
        finally:
            second.kill()
    assert str(os.getpid()) in second.log(0)
