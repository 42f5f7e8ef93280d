"""Row 22 of the faults, and the canary: clients that leave or cancel, over a real ring, and what logs say."""

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest

from config import load_settings
from tests.services.api_process import api_process
from tests.services.frontdoor_service import running_service, serving, until
from tests.services.ring_service import RingService

CANARY = "c4n4ry-Zwiebelkuchen"
NUM_RACES = 24

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ring(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RingService]:
    with RingService(tmp_path_factory.mktemp("ring"), model, 2, log_level="DEBUG") as ring:
        yield ring


def settings_of(ring: RingService, **more: str) -> dict[str, str]:
    """The settings of api.py besides STATE_DIR and MODEL_REPO."""
    return {"SPOOL_DURABILITY": "process", "DISCONNECT_GRACE_SECONDS": "0", "LOG_LEVEL": "DEBUG", **more}


def test_a_client_that_leaves_stops_its_answer_and_no_other(ring: RingService, tmp_path: Path) -> None:
    """Row 22: within a few steps on all ranks; a neighbour of its batch gets the tokens it gets alone."""
    ours = {"STATE_DIR": str(ring.state), "MODEL_REPO": str(ring.model), "DISCONNECT_GRACE_SECONDS": "3600"}
    ours = {**settings_of(ring), **ours}
    settings = load_settings(ours, root=tmp_path, environ={})
    spool = ring.spool()
    # Prompts that this model does not end by itself, as token ids: with text comes a token of its own.
    neighbour: dict[str, Any] = {"prompt": list(b"A"), "max_tokens": 100}
    leaver = {"prompt": list(b"leaver"), "max_tokens": 580, "stream": True}
    with serving(settings) as url, httpx2.Client(base_url=url, timeout=60) as http:
        alone = text_of(http.post("/v1/completions", json=neighbour))
        beside: list[str] = []

        def ask_beside() -> None:
            beside.append(text_of(httpx2.post(f"{url}/v1/completions", json=neighbour, timeout=60)))

        thread = threading.Thread(target=ask_beside)
        with http.stream("POST", "/v1/completions", json=leaver) as answer:
            request_id = answer.headers["x-request-id"]  # its own, as the client sent none
            thread.start()
            log = spool.open_log(request_id)
            until(lambda: bool(log.read_new()) and log.next_index > 20)
        num_seen, left_at = log.next_index, time.monotonic()
        until(lambda: spool.read_result(request_id) is not None)
        took_s = time.monotonic() - left_at
        thread.join(60)
    result = spool.read_result(request_id)
    assert result is not None
    num_more = len(result.token_ids) - num_seen
    print(f"left at token {num_seen}; stopped after {num_more} more and {took_s * 1000:.0f} ms")
    assert result.finish_reason == "cancelled"
    assert took_s < 1
    assert len(result.token_ids) < 580
    assert beside == [alone]
    assert [rank.poll() for rank in ring.ranks] == [None, None]


def text_of(answer: httpx2.Response) -> str:
    """The text of a completion."""
    return str(answer.json()["choices"][0]["text"])


def test_a_cancel_that_races_with_the_end_leaves_one_result(tmp_path: Path) -> None:
    """Row 22: the first one wins; its result stands, and the answer to DELETE agrees with it."""
    with running_service(tmp_path) as service:
        for number in range(NUM_RACES):
            body = {"prompt": "[paced]", "background": True, "max_tokens": 1 + number % 3}
            url = service.http.post("/generate", json=body).json()["status_url"]
            threading.Event().wait(number % 8 * 0.002)
            said = service.http.delete(url).json()
            until(lambda: service.http.get(url).json()["state"] == "done")  # noqa: B023 - called at once
            found = service.http.get(url).json()
            assert found["finish_reason"] in ("length", "cancelled")
            if said["state"] == "done":
                assert said["finish_reason"] == found["finish_reason"]
            if not said["cancelled"]:
                assert found["finish_reason"] == "length"
            assert service.http.delete(url).json()["cancelled"] is False
            assert service.http.get(url).json() == found
        assert len(service.spool.names(service.spool.folder.done)) == NUM_RACES
        until(lambda: service.spool.names(service.spool.folder.cancel) == [])


def test_no_prompt_is_ever_logged(ring: RingService, capfd: pytest.CaptureFixture[str]) -> None:
    """The canary: api and both ranks at DEBUG, with answers, refusals, cancels and failures; not one word."""
    settings = load_settings(
        {"STATE_DIR": str(ring.state), "MODEL_REPO": str(ring.model)}, root=ring.state, environ={}
    )
    chat = {"messages": [{"role": "user", "content": CANARY}], "max_tokens": 8}
    posts: list[tuple[str, dict[str, Any]]] = [
        ("/generate", {"prompt": CANARY, "raw": True, "max_tokens": 8}),
        ("/generate", {"prompt": CANARY, "raw": True, "max_tokens": 8, "stream": True, "stop": [CANARY]}),
        ("/generate", {"prompt": CANARY, "raw": True, "unheard_of": CANARY, CANARY: 1}),
        ("/generate", {"prompt": CANARY * 1000, "raw": True}),
        ("/generate", {"prompt": CANARY, "raw": True, "max_tokens": 10**6}),
        ("/generate", {"prompt": CANARY, "model": CANARY}),
        ("/generate", chat),
        ("/v1/chat/completions", chat),
        ("/v1/completions", {"prompt": CANARY, "max_tokens": 8}),
        ("/v1/completions", {"prompt": CANARY, "max_tokens": 8, "user": CANARY}),
    ]
    with ExitStack() as stack:
        _, url = stack.enter_context(api_process(settings, **settings_of(ring)))
        http = stack.enter_context(httpx2.Client(base_url=url, timeout=60))
        statuses = {
            http.post(path, json=body, headers={"Idempotency-Key": CANARY}).status_code
            for path, body in posts
        }
        assert {200, 400, 409} <= statuses
        for path, body in posts:
            http.post(path, json=body)
        http.post("/generate", content=CANARY.encode(), headers={"Content-Type": "application/json"})
        http.get(f"/requests/{CANARY}")
        long = http.post(
            "/generate", json={"prompt": CANARY, "raw": True, "background": True, "max_tokens": 900}
        )
        http.delete(long.json()["status_url"])
        until(lambda: http.get(long.json()["status_url"]).json()["state"] == "done")
    logged = capfd.readouterr()
    logs = [ring.log(0), ring.log(1), logged.err, logged.out]
    assert "DEBUG" in ring.log(0) + logged.err
    for text in logs:
        assert CANARY not in text
        assert "Zwiebelkuchen" not in text
