"""Faults 9 to 14: links between ranks that are cut, slow or damaged, strangers, and ranks that differ."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import pytest

from distributed.lifeline import EXIT_REFUSED, EXIT_RING_LOST, EXIT_WATCHDOG
from distributed.ring import MlxRing, RingLost
from tests.checkpoints import make_checkpoint
from tests.link_proxy import LinkProxy
from tests.ring_service import ROOT, RingService, free_ports

pytestmark = pytest.mark.slow

PROMPT = [(7 * i) % 250 for i in range(20)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("models") / "tiny-llama", "llama")


def spawn_with_proxy(ring: RingService) -> LinkProxy:
    """Start a ring of two in which rank 0 reaches rank 1 through a proxy."""
    hosts = [f"127.0.0.1:{port}" for port in free_ports(2)]
    proxy = LinkProxy(hosts[1])
    ring.spawn(hosts=hosts, hosts_seen_by={0: [hosts[0], proxy.address]})
    return proxy


def start_answer(ring: RingService, num_tokens: int) -> str:
    """Submit a request and wait for its first tokens; return its id."""
    spool = ring.spool()
    request = ring.request(PROMPT, max_tokens=num_tokens)
    with spool.listen("door-test") as bell:
        spool.submit(request)
        reader = spool.open_log(request.id)
        while not reader.read_new():
            bell.drain()
    return request.id


def test_a_reset_link_ends_both_ranks_at_once_and_the_answer_goes_on(model: Path, tmp_path: Path) -> None:
    """Both neighbours exit within five seconds; the next ring gives the whole answer."""
    with RingService(tmp_path, model, 2) as ring:
        whole = ring.ask(ring.request(PROMPT, max_tokens=300))[0]
        ring.end()
        with spawn_with_proxy(ring) as proxy:
            ring.wait_until_ready()
            request_id = start_answer(ring, 300)
            proxy.cut()
            cut_at = time.monotonic()
            assert {rank.wait(5) for rank in ring.ranks} == {EXIT_RING_LOST}
            assert time.monotonic() - cut_at < 5
        ring.kill()
        ring.start()
        spool = ring.spool()
        with spool.listen("door-test") as bell:
            result = ring.wait(spool, bell, request_id)
    assert result.token_ids == whole.token_ids


def test_a_slow_link_is_slow_and_no_alarm(model: Path, tmp_path: Path) -> None:
    """A delay of 200 ms each way only makes the answer late."""
    with RingService(tmp_path, model, 2, step_timeout=5) as ring:
        fast = ring.ask(ring.request(PROMPT, max_tokens=5))[0]
        ring.end()
        with spawn_with_proxy(ring) as proxy:
            ring.wait_until_ready()
            proxy.delay_seconds = 0.2
            slow = ring.ask(ring.request(PROMPT, max_tokens=5))[0]
            assert all(rank.poll() is None for rank in ring.ranks)
    assert slow.token_ids == fast.token_ids
    assert slow.performance["total_s"] > 0.8


def test_a_flipped_bit_in_a_header_ends_the_ring_before_a_wrong_token(model: Path, tmp_path: Path) -> None:
    """The damaged frame is refused; what is in the log is what an undisturbed ring gives."""
    with RingService(tmp_path, model, 2) as ring:
        whole = ring.ask(ring.request(PROMPT, max_tokens=200))[0]
        ring.end()
        with spawn_with_proxy(ring) as proxy:
            ring.wait_until_ready()
            request_id = start_answer(ring, 200)
            proxy.mangle = lambda data, _: bytes([data[0] ^ 4, *data[1:]])
            assert EXIT_RING_LOST in {rank.wait(10) for rank in ring.ranks}
        reader = ring.spool().open_log(request_id)
        logged = [record.token_id for record in reader.read_new()]
        assert logged == list(whole.token_ids[: len(logged)])
        assert "broken frame" in ring.log(0) + ring.log(1)


def test_a_stranger_on_a_ring_port_ends_the_start_in_time(model: Path, tmp_path: Path) -> None:
    """Whoever connects first is taken for the neighbour by MLX; the ring then ends within CONNECT_TIMEOUT."""
    ring = RingService(tmp_path, model, 2, connect_timeout=6)
    with socket.socket() as stranger:
        try:
            ring.spawn(overrides={1: {"PYTHONPATH": str(late_start(tmp_path))}})
            connect_as_soon_as_possible(stranger, ring.hosts[0])
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n" * 100)
            codes = {rank.wait(40) for rank in ring.ranks}
        finally:
            ring.kill()
    assert codes <= {1, EXIT_RING_LOST, EXIT_WATCHDOG}
    assert not (tmp_path / "spool" / "stream").exists() or not os.listdir(tmp_path / "spool" / "stream")


def late_start(folder: Path) -> Path:
    """Return a folder for PYTHONPATH that makes a Python process start three seconds later."""
    place = folder / "late"
    place.mkdir()
    (place / "sitecustomize.py").write_text("import time\ntime.sleep(3)\n")
    return place


def connect_as_soon_as_possible(connection: socket.socket, address: str) -> None:
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if connection.connect_ex((host, int(port))) == 0:
            return
    raise AssertionError("rank 0 never listened")


def test_a_rank_with_other_weights_is_refused_by_name(model: Path, tmp_path: Path) -> None:
    """The sentence names the rank and the difference."""
    ring = RingService(tmp_path, model, 2)
    hook = tmp_path / "hook"
    hook.mkdir()
    # On this rank another folder lies where rank 0 says the model is: seen through its own hash.
    (hook / "sitecustomize.py").write_text(
        "import distributed.sharding as s\ns.weights_hash = lambda folder: 'another'\n"
    )
    try:
        ring.spawn(overrides={1: {"PYTHONPATH": f"{hook}:{ROOT}"}})
        assert ring.ranks[1].wait(40) == EXIT_REFUSED
    finally:
        ring.kill()
    assert "rank 1 differs from rank 0 in its model weights" in ring.log(1)


def test_without_its_neighbours_a_rank_gives_up_in_time(model: Path, tmp_path: Path) -> None:
    """A rank that waits for one that never starts ends within CONNECT_TIMEOUT and says so."""
    ring = RingService(tmp_path, model, 2, connect_timeout=4)
    try:
        ring.spawn()
        ring.ranks[1].kill()
        assert ring.ranks[0].wait(30) == 1  # ended by faulthandler
    finally:
        ring.kill()
    assert "Timeout" in ring.log(0)


def test_a_world_of_one_is_refused_where_two_were_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its environment MLX silently makes a ring of one (mlx 0.32.4): that must never serve."""
    group = SimpleNamespace(rank=lambda: 0, size=lambda: 1)
    monkeypatch.setattr(mx.distributed, "init", lambda **_: group)
    with pytest.raises(RingLost, match="asked for rank 0 of 2, got 0 of 1"):
        MlxRing(0, ["127.0.0.1:1", "127.0.0.1:2"], 1, 5.0)
