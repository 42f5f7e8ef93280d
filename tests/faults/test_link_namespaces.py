"""Fault 9 on a real link: two ranks in two network namespaces, joined by veth; cut, slowed, delayed."""

from __future__ import annotations

import select
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from distributed.ring.watchdog import EXIT_RING_LOST, EXIT_WATCHDOG
from spool import Result
from tests.services.linked_namespaces import LinkedNamespaces, NoNamespaces
from tests.services.ring_service import RingService, free_ports

pytestmark = pytest.mark.slow

PROMPT = [(7 * i) % 250 for i in range(6)]
KIB = 1024
# Keepalive ends a silent connection after 4 s; both ranks are to be gone after 5. A busy machine may be late.
CUT_LIMIT_S, LATE_S = 5.0, 10.0


@pytest.fixture
def link() -> Iterator[LinkedNamespaces]:
    try:
        with LinkedNamespaces() as made:
            yield made
    except NoNamespaces as error:
        pytest.skip(f"no network namespaces here: {error}")


@contextmanager
def ring_over(link: LinkedNamespaces, model: Path, state: Path, **settings: int) -> Iterator[RingService]:
    """A ring whose rank 0 is on the left and rank 1 on the right."""
    ring = RingService(state, model, 2, **settings)
    try:
        start_ring(ring, link)
        yield ring
    finally:
        ring.kill()


def start_ring(ring: RingService, link: LinkedNamespaces) -> None:
    ports = free_ports(2)
    hosts = [f"{address}:{port}" for address, port in zip(link.addresses, ports, strict=True)]
    ring.spawn(hosts=hosts, prefixes={side: link.prefix(side) for side in (0, 1)})
    ring.wait_until_ready()


def ask_while_it_lives(ring: RingService, *prompts: list[int]) -> Result:
    """Ask all at once for five tokens each; the last one's result. Fails as soon as a rank ends."""
    spool, requests = ring.spool(), [ring.request(prompt, max_tokens=5) for prompt in prompts]
    with spool.listen("door-test") as bell:
        for request in requests:
            spool.submit(request)
        while (result := spool.read_result(requests[-1].id)) is None:
            assert all(rank.poll() is None for rank in ring.ranks), ring.log(0) + ring.log(1)
            select.select([bell], [], [], 0.5)
            bell.drain()
    return result


def test_a_link_that_goes_down_ends_both_ranks(
    model: Path, tmp_path: Path, link: LinkedNamespaces, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing says that a cable was pulled; both ends of an idle and of a busy ring leave in time."""
    with ring_over(link, model, tmp_path / "idle") as idle, ring_over(link, model, tmp_path / "busy") as busy:
        request_id = busy.begin(PROMPT, 600)
        link.cut()
        cut_at = time.monotonic()
        left_after = []
        for rank in [*busy.ranks, *idle.ranks]:
            assert rank.wait(CUT_LIMIT_S + LATE_S) == EXIT_RING_LOST
            left_after.append(time.monotonic() - cut_at)
        assert busy.spool().read_result(request_id) is None
    with capsys.disabled():
        print(f"\nlink down: all ranks had left after {max(left_after):.1f} s")


@pytest.mark.long
def test_one_kilobyte_a_second_is_slow_and_no_alarm(
    model: Path, tmp_path: Path, link: LinkedNamespaces, capsys: pytest.CaptureFixture[str]
) -> None:
    """Steps that take seconds, but less than STEP_TIMEOUT, only make the answer late."""
    with ring_over(link, model, tmp_path, step_timeout=60) as ring:
        fast = ring.ask(ring.request(PROMPT, max_tokens=5))[0]
        link.limit(KIB)
        slow = ask_while_it_lives(ring, [*PROMPT, 9], PROMPT)
    assert slow.token_ids == fast.token_ids
    assert slow.performance["total_s"] > 3
    with capsys.disabled():
        print(f"\n1 KB/s: 5 tokens in {slow.performance['total_s']:.1f} s, no alarm")


@pytest.mark.long
def test_a_step_that_takes_longer_than_its_limit_ends_the_ring(
    model: Path, tmp_path: Path, link: LinkedNamespaces
) -> None:
    """At 1 KB/s with STEP_TIMEOUT=2 a long step counts as stuck; its request waits for another ring."""
    with ring_over(link, model, tmp_path, step_timeout=2, prefill_chunk_tokens=64) as ring:
        link.limit(KIB)
        spool, request = ring.spool(), ring.request([i % 250 for i in range(60)], max_tokens=4)
        spool.submit(request)
        codes = {rank.wait(30) for rank in ring.ranks}
        assert codes <= {EXIT_RING_LOST, EXIT_WATCHDOG}
        assert spool.read_result(request.id) is None
        ring.kill()
        link.unlimit()
        start_ring(ring, link)
        assert ring.wait_for(request.id).finish_reason == "length"


@pytest.mark.long
def test_a_delay_of_a_fifth_of_a_second_is_no_alarm(
    model: Path, tmp_path: Path, link: LinkedNamespaces
) -> None:
    """200 ms each way only make the answer late (where the kernel has netem; else see test_link_faults)."""
    try:
        link.delay(200)
    except NoNamespaces as error:
        pytest.skip(f"no netem here: {error}")
    with ring_over(link, model, tmp_path, step_timeout=5) as ring:
        slow = ask_while_it_lives(ring, PROMPT)
        link.unlimit()
        fast = ring.ask(ring.request(PROMPT, max_tokens=5))[0]
    assert slow.token_ids == fast.token_ids
    assert slow.performance["total_s"] > 1.5
