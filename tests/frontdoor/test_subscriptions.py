"""Doorbell, rescan and idleness of the front door, and more than one of them on a spool."""

import asyncio
import errno
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from frontdoor.subscriptions import Subscriptions, WatchGroup
from spool import Request, Result, SamplingParams, Spool, SpoolOwner, TokenRecord, Usage
from tests.fakes.spool_fakes import FailingFileSystem, open_owner
from tests.services.frontdoor_service import make_client, running_service, serving, until

ID = "a" * 32
LONG_POLL_SECONDS = 30.0


@contextmanager
def subscribed(
    owner: SpoolOwner, poll_interval_seconds: float = LONG_POLL_SECONDS
) -> Iterator[Subscriptions]:
    """Listen for one request, which waits."""
    subscriptions = Subscriptions(owner.spool, poll_interval_seconds=poll_interval_seconds)
    subscriptions.start()
    owner.spool.submit(Request(ID, SamplingParams(max_tokens=2), "hi", None, None, "tiny"))
    yield subscriptions
    subscriptions.stop()


def finish(owner: SpoolOwner) -> None:
    claim = owner.claim(1)[0]
    usage = Usage(1, 2, 0)
    owner.complete(claim, Result(ID, "tiny", "ab", (1, 2), "length", usage, {}, None, time.time()))


def test_news_arrive_by_the_bell_alone(owner: SpoolOwner) -> None:
    """With a rescan only every half minute, a ring brings tokens and result at once."""

    async def follow() -> None:
        with (
            subscribed(owner) as subscriptions,
            subscriptions.watch(ID, group := WatchGroup(), with_tokens=True) as watch,
            owner.append_log(ID) as log,
        ):
            log.append([TokenRecord(0, 1, "a")])
            owner.ring_doors()
            assert await group.news(5)
            assert [record.text for record in watch.take_records()] == ["a"]
            log.append([TokenRecord(1, 2, "b")])
            finish(owner)
            owner.ring_doors()
            assert await group.news(5)
            assert [record.text for record in watch.take_records()] == ["b"]
            assert watch.result is not None

    asyncio.run(follow())


@pytest.mark.parametrize("call", ["read", "read_from"])
def test_an_answer_that_cannot_be_read_now_is_read_later(
    tmp_path: Path, call: str, caplog: pytest.LogCaptureFixture
) -> None:
    """No descriptors left, or EIO: the client waits, and gets all of it; the log has one line."""
    fs = FailingFileSystem(call, errno.EMFILE)

    async def follow(owner: SpoolOwner) -> None:
        with (
            subscribed(owner) as subscriptions,
            subscriptions.watch(ID, group := WatchGroup(), with_tokens=True) as watch,
            owner.append_log(ID) as log,
        ):
            log.append([TokenRecord(0, 1, "a"), TokenRecord(1, 2, "b")])
            finish(owner)
            fs.is_failing = True
            for _ in range(3):
                subscriptions._read_all_news()
            assert (watch.failure, watch.result, watch.records) == (None, None, [])
            fs.is_failing = False
            subscriptions._read_all_news()
            assert await group.news(5)
            assert [record.text for record in watch.take_records()] == ["a", "b"]
            assert watch.result is not None

    with open_owner(Spool.open(tmp_path / "spool", durability="process", fs=fs)) as owner:
        asyncio.run(follow(owner))
    assert caplog.text.count("cannot read the answer") == 1


def test_a_lost_ring_costs_one_poll_interval(owner: SpoolOwner) -> None:
    """Nobody rings; the rescan finds the result."""

    async def follow() -> float:
        with (
            subscribed(owner, 0.05) as subscriptions,
            subscriptions.watch(ID, group := WatchGroup(), with_tokens=False) as watch,
        ):
            finish(owner)
            started = time.monotonic()
            assert await group.news(5)
            assert watch.result is not None
        return time.monotonic() - started

    assert asyncio.run(follow()) < 1


def test_what_is_there_already_counts_as_news(owner: SpoolOwner) -> None:
    """A watch that begins after the end sees everything without any ring or rescan."""

    async def follow() -> None:
        with subscribed(owner) as subscriptions:
            with owner.append_log(ID) as log:
                log.append([TokenRecord(0, 1, "a"), TokenRecord(1, 2, "b")])
            finish(owner)
            with subscriptions.watch(ID, group := WatchGroup(), with_tokens=True) as watch:
                assert await group.news(0.01)
                assert len(watch.take_records()) == 2
                assert watch.result is not None

    asyncio.run(follow())


def test_an_idle_listener_has_no_timer(owner: SpoolOwner) -> None:
    """Without watches, nothing is scheduled and no file is read."""

    async def follow() -> list[bool]:
        with subscribed(owner, 0.01) as subscriptions:
            states = [subscriptions.is_rescanning]
            with subscriptions.watch(ID, WatchGroup(), with_tokens=False):
                states.append(subscriptions.is_rescanning)
            return [*states, subscriptions.is_rescanning]

    assert asyncio.run(follow()) == [False, True, False]


def test_front_doors_share_a_spool_and_take_no_request_with_them(tmp_path: Path) -> None:
    """Each answers its own clients, either finds the requests of the other, also of one that is gone."""
    with running_service(tmp_path, {"DISCONNECT_GRACE_SECONDS": "60"}) as service:
        with serving(service.settings) as other, make_client(other) as http:
            for _ in range(5):
                mine = service.http.post("/generate", json={"prompt": "hi"}).json()
                theirs = http.post("/generate", json={"prompt": "hi", "stream": True})
                assert "event: done" in theirs.text
                assert http.get(f"/requests/{mine['id']}").json()["text"] == mine["text"]
            request_id = http.post("/generate", json={"prompt": "[hold]", "background": True}).json()["id"]
        service.engine.release()
        until(lambda: service.spool.state(request_id) == "done")
        assert service.http.get(f"/requests/{request_id}").json()["finish_reason"] == "length"
