"""Faults 9 to 14: links between ranks that are cut, slow or damaged, strangers, and ranks that differ."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import pytest

from distributed.ring.ring import MlxRing, RingLost
from distributed.ring.watchdog import EXIT_REFUSED, EXIT_RING_LOST, EXIT_WATCHDOG
from spool import Result
from tests.fakes.link_proxy import LinkProxy
from tests.services.ring_service import ROOT, RingService, free_ports
from tests.services.waiting import until

pytestmark = pytest.mark.slow

PROMPT = [(7 * i) % 250 for i in range(20)]


@dataclass
class ProxiedRing:
    """A ring of two in which rank 0 reaches rank 1 through a proxy; a test that ends it starts the next."""

    ring: RingService
    proxy: LinkProxy | None = None

    def start_anew(self) -> LinkProxy:
        """End what runs and start the next ring, which goes on with what was asked of the last one."""
        self.end()
        hosts = [f"127.0.0.1:{port}" for port in free_ports(2)]
        self.proxy = LinkProxy(hosts[1])
        self.ring.spawn(hosts=hosts, hosts_seen_by={0: [hosts[0], self.proxy.address]})
        self.ring.wait_until_ready()
        return self.proxy

    def find_living(self) -> LinkProxy:
        """The proxy of a ring that runs."""
        is_alive = self.ring.ranks and all(rank.poll() is None for rank in self.ring.ranks)
        return self.proxy if self.proxy and is_alive else self.start_anew()

    def end(self) -> None:
        self.ring.kill()
        if self.proxy:
            self.proxy.close()


@pytest.fixture(scope="module")
def proxied(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxiedRing]:
    made = ProxiedRing(RingService(tmp_path_factory.mktemp("ring"), model, 2, step_timeout=5))
    yield made
    made.end()


def ask(ring: RingService, num_tokens: int) -> Result:
    return ring.ask(ring.request(PROMPT, max_tokens=num_tokens))[0]


def test_a_slow_link_is_slow_and_no_alarm(proxied: ProxiedRing) -> None:
    """A delay each way only makes the answer late."""
    proxy, ring = proxied.find_living(), proxied.ring
    fast = ask(ring, 4)
    proxy.delay_seconds = 0.1
    slow = ask(ring, 4)
    proxy.delay_seconds = 0.0
    assert all(rank.poll() is None for rank in ring.ranks)
    assert slow.token_ids == fast.token_ids
    assert slow.performance["total_s"] > 0.3


def test_a_flipped_bit_in_a_header_ends_the_ring_before_a_wrong_token(proxied: ProxiedRing) -> None:
    """The damaged frame is refused; the log, and the answer of the next ring, are an undisturbed ring's."""
    proxy, ring = proxied.find_living(), proxied.ring
    whole = ask(ring, 200)
    request_id = ring.begin(PROMPT, 200)
    proxy.mangle = lambda data, _: bytes([data[0] ^ 4, *data[1:]])
    assert EXIT_RING_LOST in {rank.wait(10) for rank in ring.ranks}
    logged = [record.token_id for record in ring.spool().open_log(request_id).read_new()]
    assert logged == list(whole.token_ids[: len(logged)])
    assert "invalid frame" in ring.log(0) + ring.log(1)
    proxied.start_anew()
    assert ring.wait_for(request_id).token_ids == whole.token_ids


def test_a_reset_link_ends_both_ranks_at_once_and_the_answer_goes_on(proxied: ProxiedRing) -> None:
    """Both neighbours exit within five seconds; the next ring gives the whole answer."""
    proxy, ring = proxied.find_living(), proxied.ring
    whole = ask(ring, 200)
    request_id = ring.begin(PROMPT, 200)
    proxy.cut()
    cut_at = time.monotonic()
    assert {rank.wait(5) for rank in ring.ranks} == {EXIT_RING_LOST}
    assert time.monotonic() - cut_at < 5
    proxied.start_anew()
    assert ring.wait_for(request_id).token_ids == whole.token_ids


def test_a_stranger_on_a_ring_port_ends_the_start_in_time(model: Path, tmp_path: Path) -> None:
    """Whoever connects first is taken for the neighbour by MLX; the ring then ends within CONNECT_TIMEOUT."""
    ring = RingService(tmp_path / "state", model, 2, connect_timeout=2)
    signal_file = tmp_path / "go"
    hook = f"import os, time\nwhile not os.path.exists({str(signal_file)!r}): time.sleep(0.02)\n"
    with socket.socket() as stranger:
        try:
            ring.spawn(overrides={1: {"PYTHONPATH": hook_into_start(tmp_path, hook)}})
            host, _, port = ring.hosts[0].rpartition(":")
            until(lambda: stranger.connect_ex((host, int(port))) == 0, what="rank 0 never listened")
            signal_file.touch()
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n" * 100)
            codes = {rank.wait(40) for rank in ring.ranks}
        finally:
            ring.kill()
    assert codes <= {1, EXIT_RING_LOST, EXIT_WATCHDOG}
    stream = ring.state / "spool" / "stream"
    assert not stream.exists() or not os.listdir(stream)


def hook_into_start(folder: Path, code: str) -> str:
    """Return a PYTHONPATH with which a Python process runs this code at its start."""
    place = folder / "hook"
    place.mkdir()
    (place / "sitecustomize.py").write_text(code)
    return f"{place}:{ROOT}"


def test_a_rank_with_other_weights_is_refused_by_name(model: Path, tmp_path: Path) -> None:
    """The sentence names the rank and the difference."""
    ring = RingService(tmp_path, model, 2)
    # On this rank another folder lies where rank 0 says the model is: seen through its own hash.
    hook = "import distributed.planning.layer_plan as s\ns.weights_hash = lambda folder: 'another'\n"
    try:
        ring.spawn(overrides={1: {"PYTHONPATH": hook_into_start(tmp_path, hook)}})
        assert ring.ranks[1].wait(40) == EXIT_REFUSED
    finally:
        ring.kill()
    assert "rank 1 differs from rank 0 in its model weights" in ring.log(1)


def test_without_its_neighbours_a_rank_gives_up_in_time(model: Path, tmp_path: Path) -> None:
    """A rank that waits for one that never starts ends within CONNECT_TIMEOUT and says so."""
    ring = RingService(tmp_path, model, 2, connect_timeout=1)
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
