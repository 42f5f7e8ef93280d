"""A front door is killed in the grace time of clients that left it."""

from pathlib import Path

import httpx2
import pytest

from spool import Spool
from tests.fakes.fake_engine import FakeEngine
from tests.services.api_process import api_process
from tests.services.frontdoor_service import make_settings, serving, until


def leave_stream(url: str, engine: FakeEngine) -> str:
    """Begin a stream that is held, leave it, and return the request's id."""
    num_before = len(engine.claimed)
    with httpx2.stream("POST", f"{url}/generate", json={"prompt": "[hold]", "stream": True}) as answer:
        next(answer.iter_raw())
        until(lambda: len(engine.claimed) > num_before)
    return engine.claimed[-1].id


@pytest.mark.slow
def test_a_grace_time_outlives_its_front_door(tmp_path: Path) -> None:
    """A client that stays away loses its request; one that returns to the next front door keeps it."""
    settings = make_settings(tmp_path)
    spool = Spool.open(settings.spool_dir, durability="process")
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
