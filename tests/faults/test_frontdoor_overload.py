"""Rows 23 and 24 of the faults: clients that are slow, endless or too many."""

import asyncio
import json
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import psutil
import pytest

from spool import Spool
from tests.fakes.fake_engine import FakeEngine
from tests.services.api_process import api_process
from tests.services.frontdoor_service import connect, make_settings, running_service, until

MIB = 2**20
MAX_GROWTH_BYTES = 48 * MIB
NUM_CONNECTIONS = 10_000
NUM_OWN_DESCRIPTORS = 500  # of the test itself
MIN_CONNECTIONS = 1500
POST = b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[psutil.Process, str]]:
    """A front door of 256 descriptors in a process of its own, and an engine."""
    settings = make_settings(tmp_path_factory.mktemp("front"))
    spool = Spool.open(settings.spool_dir, durability="process")
    limits = {"FILE_DESCRIPTOR_SOFT_LIMIT": "256", "FILE_DESCRIPTOR_HARD_LIMIT": "256"}
    with FakeEngine(spool, settings.run_dir), api_process(settings, **limits) as (process, url):
        assert httpx2.post(f"{url}/generate", json={"prompt": "hi"}, timeout=30).status_code == 200
        yield psutil.Process(process.pid), url


def is_well(url: str) -> bool:
    """Whether a new client is answered."""
    with suppress(httpx2.TransportError):
        return httpx2.post(f"{url}/generate", json={"prompt": "hi"}, timeout=10).status_code == 200
    return False


@pytest.fixture
def num_connections() -> Iterator[int]:
    """How many this process may hold open: as many as wanted, where the hard limit lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = NUM_CONNECTIONS + NUM_OWN_DESCRIPTORS
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, allowed), hard))
    if allowed < MIN_CONNECTIONS:
        pytest.skip(f"a process may open {hard} files here")
    yield allowed - NUM_OWN_DESCRIPTORS
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_ten_thousand_connections_are_turned_away(
    front: tuple[psutil.Process, str], num_connections: int
) -> None:
    """Row 23: bounded memory and descriptors; those over the limit get a 503, and then all is as before.

    None of them closes by itself. Every hundredth is looked at, and the server's limits at each.
    """
    process, url = front
    before = process.memory_info().rss
    with ExitStack() as stack:
        for number in range(1, num_connections + 1):
            one = stack.enter_context(closing(connect(url)))
            if number > MIN_CONNECTIONS and number % 100 == 0:
                assert b"503" in one.recv(65536)
                assert process.num_fds() <= 256
        assert process.memory_info().rss - before < MAX_GROWTH_BYTES
    until(lambda: is_well(url))


def test_slow_clients_do_not_disturb_other_clients(
    front: tuple[psutil.Process, str],
) -> None:
    """Row 23: 30 of each; another client is answered at once, and memory does not grow."""
    process, url = front
    before = process.memory_info().rss
    body = b'{"prompt": "hi", "stream": true, "max_tokens": 40}'
    with ExitStack() as stack:
        for _ in range(30):
            slow_header, slow_body, slow_reader = (
                stack.enter_context(closing(connect(url))) for _ in range(3)
            )
            slow_header.sendall(b"GET / HTTP/1.1\r\nHost: l")
            slow_body.sendall(POST + b"Content-Length: 1000\r\n\r\n{")
            slow_reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            slow_reader.sendall(POST + b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
            assert slow_reader.recv(1)
        started = time.monotonic()
        assert is_well(url)
        assert time.monotonic() - started < 2
        assert process.memory_info().rss - before < MAX_GROWTH_BYTES


def test_an_endless_body_is_cut_off(front: tuple[psutil.Process, str]) -> None:
    """Row 23: without a length, no more than the limit is read; 413, and the memory is flat."""
    process, url = front
    before = process.memory_info().rss
    answer = b""
    with closing(connect(url)) as connection, suppress(OSError):
        connection.sendall(POST + b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(2000):
            connection.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")
        answer = connection.recv(65536)
    assert not answer or b" 413 " in answer
    assert process.memory_info().rss - before < MAX_GROWTH_BYTES
    assert is_well(url)


def test_posts_over_the_limit(tmp_path: Path) -> None:
    """Row 24: 429 with Retry-After for some, and every accepted one finishes, in the order of acceptance."""
    limits = {"MAX_QUEUE_DEPTH": "50", "FILE_DESCRIPTOR_SOFT_LIMIT": "4096"}
    with running_service(tmp_path, {**limits, "FILE_DESCRIPTOR_HARD_LIMIT": "4096"}, max_open=0) as service:
        answers = asyncio.run(post_many(service.url, 400))
        statuses = [status for status, _, _ in answers]
        assert set(statuses) == {202, 429}
        accepted = {body["id"] for status, _, body in answers if status == 202}
        assert 50 <= len(accepted) <= 50 + 8  # submits of the same moment may pass the limit together
        for status, head, body in answers:
            if status == 429:
                assert b"\r\nretry-after: " in head.lower()
                assert body["error"]["code"] == "rate_limit_exceeded"
        service.engine.open_up(8)
        until(lambda: service.spool.depth().num_waiting + service.spool.depth().num_active == 0)
        assert {request.id for request in service.engine.claimed} == accepted
        order = [service.engine.accepted_unix[request.id] for request in service.engine.claimed]
        assert order == sorted(order)
        for request_id in accepted:
            result = service.spool.read_result(request_id)
            assert result is not None
            assert result.finish_reason == "length"


async def post_many(url: str, count: int) -> list[tuple[int, bytes, Any]]:
    """Post from that many connections at once; (status, head, body) of each."""
    address = urlsplit(url)
    body = b'{"prompt": "hi", "background": true}'
    content = POST + b"Connection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)

    async def post() -> tuple[int, bytes, Any]:
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        writer.write(content)
        head, _, answer = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        await writer.wait_closed()
        return int(head.split()[1]), head, json.loads(answer)

    return await asyncio.gather(*(post() for _ in range(count)))
