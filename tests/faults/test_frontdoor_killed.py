"""Rows 1 to 3 of the faults: kill -9 of the front door before, in and after the moment of acceptance, and in
the grace time of clients that left it.
"""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest

from config import Settings
from spool import Spool, SpoolOwner
from tests.fakes.fake_engine import FakeEngine
from tests.services.api_process import api_process
from tests.services.frontdoor_service import events, make_settings, serving, until

KEY = {"Idempotency-Key": "retry-me"}
BODY = {"prompt": "hi", "temperature": 1.0}
pytestmark = pytest.mark.slow
needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace kills at a system call")


def killed_at(system_call: str, number: int = 1) -> list[str]:
    """Run api.py so that it is killed on its way into a system call, which then does not happen."""
    inject = f"inject={system_call}:signal=KILL:when={number}"
    strace = ["strace", "-f", "-qq", "-o", "/dev/null"]
    return [*strace, "-e", f"trace={system_call}", "-e", inject]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return make_settings(tmp_path)


@pytest.fixture
def spool(settings: Settings) -> Spool:
    return Spool.open(settings.spool_dir, durability="process")


def post_until_killed(url: str, headers: dict[str, str]) -> None:
    """Ask, and get no answer at all."""
    with pytest.raises(httpx2.TransportError):
        httpx2.post(f"{url}/generate", json=BODY, headers=headers, timeout=30)


@needs_strace
def test_a_kill_before_the_acceptance_leaves_nothing(settings: Settings, spool: Spool) -> None:
    """Row 1: no 2xx was sent, nothing will run, what was written half is swept; a retry is a new request."""
    # The key's record is linked before the request is.
    with api_process(settings, under=killed_at("link,linkat", number=2)) as (process, url):
        post_until_killed(url, KEY)
        process.wait(30)
    assert spool.depth().num_waiting == 0
    with SpoolOwner(spool) as owner:
        owner.recover()
        owner.sweep(time.time() + 2 * 3600, retention_seconds=86_400)
    assert set(spool.names(spool.folder.tmp)) <= {"ballast"}
    with FakeEngine(spool, settings.run_dir) as engine, serving(settings) as url:
        answer = httpx2.post(f"{url}/generate", json=BODY, headers=KEY, timeout=30)
        assert answer.status_code == 200
        assert [request.id for request in engine.claimed] == [answer.json()["id"]]


@needs_strace
def test_a_kill_after_the_acceptance_loses_nothing(settings: Settings, spool: Spool) -> None:
    """Row 2: the request runs without its front door; retries under its key get its id, seed and answer."""
    # The first datagram is the ring of rank 0's bell, just after the request was published.
    with api_process(settings, under=killed_at("sendto")) as (process, url):
        post_until_killed(url, KEY)
        process.wait(30)
    (name,) = spool.names(spool.folder.incoming)
    with FakeEngine(spool, settings.run_dir, max_open=0) as engine, serving(settings) as url:
        waiting = httpx2.post(f"{url}/generate", json={**BODY, "background": True}, headers=KEY, timeout=30)
        assert waiting.status_code == 202
        engine.open_up(64)
        for _ in range(2):  # while it runs or after its end
            answer = httpx2.post(f"{url}/generate", json=BODY, headers=KEY, timeout=30).json()
            assert answer["id"] == waiting.json()["id"]
            assert answer["id"] in name
            assert answer["seed"] == engine.claimed[0].params.seed
        assert len(engine.claimed) == 1
        assert spool.names(spool.folder.done) == [f"{answer['id']}.json"]


def test_a_kill_while_streaming_costs_no_token(settings: Settings, spool: Spool) -> None:
    """Row 3: the ring goes on; a returning client gets the rest, no index twice and none missing."""
    body = {"prompt": "[paced]", "stream": True, "max_tokens": 40}
    with FakeEngine(spool, settings.run_dir) as engine:
        with api_process(settings) as (process, url):
            seen = read_some(url, body, "id: 7\n")
            process.kill()
        first = complete_events(seen)
        last_seen = max(int(event_id) for _, event_id, _ in first if event_id is not None)
        with serving(settings) as url:
            stream = f"{url}/requests/{engine.claimed[0].id}/stream"
            rest = httpx2.get(stream, headers={"Last-Event-ID": str(last_seen)}, timeout=30).text
    both = [*first, *events(rest)]
    assert [int(event_id) for _, event_id, _ in both if event_id is not None] == list(range(40))
    name, _, done = both[-1]
    assert name == "done"
    assert "".join(data["text"] for name, _, data in both if name == "token") == done["text"]
    assert len(engine.claimed) == 1


def read_some(url: str, body: dict[str, Any], until_text: str) -> str:
    """Read a stream until a text has come, and some bytes more."""
    seen = ""
    with httpx2.stream("POST", f"{url}/generate", json=body, timeout=30) as answer:
        for text in answer.iter_text():
            seen += text
            if until_text in seen:
                return seen
    raise AssertionError(f"the stream ended before {json.dumps(until_text)}")


def complete_events(text: str) -> list[tuple[str, str | None, Any]]:
    """The events that arrived whole: a client drops half a frame."""
    return events(text.rpartition("\n\n")[0])


def leave_stream(url: str, engine: FakeEngine) -> str:
    """Begin a stream that is held, leave it, and return the request's id."""
    num_before = len(engine.claimed)
    with httpx2.stream("POST", f"{url}/generate", json={"prompt": "[hold]", "stream": True}) as answer:
        next(answer.iter_raw())
        until(lambda: len(engine.claimed) > num_before)
    return engine.claimed[-1].id


def test_a_grace_time_outlives_its_front_door(settings: Settings, spool: Spool) -> None:
    """Row 3: a client that stays away loses its request; one that returns to the next front door keeps it."""
    with FakeEngine(spool, settings.run_dir) as engine:
        with api_process(settings, DISCONNECT_GRACE_SECONDS="3") as (process, url):
            left = [leave_stream(url, engine) for _ in range(2)]
            until(lambda: spool.ending_later() == set(left))
            process.kill()
            process.wait(10)
        with serving(settings) as url:
            gone, back = left
            assert httpx2.get(f"{url}/requests/{back}").json()["state"] == "active"
            assert spool.ending_later() == {gone}
            until(lambda: spool.state(gone) == "done")
            engine.release()
            until(lambda: spool.state(back) == "done")
            reasons = [httpx2.get(f"{url}/requests/{id}").json()["finish_reason"] for id in left]
            assert reasons == ["cancelled", "stop"]
