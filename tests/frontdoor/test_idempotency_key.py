"""Idempotency-Key: a retry gets the first one's id and answer, whatever has become of it meanwhile."""

import errno
import os
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from config.run_files import write_json
from spool.fsio import DiskSpace
from tests.services.frontdoor_service import (
    Service,
    events,
    make_client,
    post_by_hand,
    running_service,
    serving,
    until,
)

SETTINGS = {"DISCONNECT_GRACE_SECONDS": "0.3"}
CHAT = {"messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
def key() -> str:
    """A key of its own for each test."""
    return uuid.uuid4().hex


def post(http: httpx2.Client, path: str, body: dict[str, Any], key: str) -> httpx2.Response:
    return http.post(path, json=body, headers={"Idempotency-Key": key})


@pytest.mark.parametrize(
    ("path", "body"),
    [("/generate", {"prompt": "hi"}), ("/v1/chat/completions", CHAT), ("/v1/completions", {"prompt": "hi"})],
)
def test_a_retry_of_a_finished_request_gets_its_answer(
    service: Service, key: str, path: str, body: dict[str, Any]
) -> None:
    """The same id and text and seed, also one that was drawn, and one run; another key is another request."""
    body = {**body, "temperature": 1.0}
    first, retry = (post(service.http, path, body, key) for _ in range(2))
    assert (first.status_code, retry.status_code) == (200, 200)
    ours, theirs = first.json(), retry.json()
    for answer in (ours, theirs):
        answer.pop("created", None)  # of a finished request, worked out from its times
    assert ours == theirs
    assert len(service.engine.claimed) == 1
    assert post(service.http, path, body, f"{key}-2").json()["id"] != first.json()["id"]


def test_arguments_of_an_earlier_call_may_nest_deep(service: Service, key: str) -> None:
    """They are hashed as the model wrote them."""
    arguments = '{"a":' * 900 + "1" + "}" * 900
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
    turns = [*CHAT["messages"], {"role": "assistant", "tool_calls": [call]}, *CHAT["messages"]]
    answer = post(service.http, "/v1/chat/completions", {"messages": turns}, key)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["code"] == "context_length_exceeded"


def test_retries_attach_to_a_request_that_runs(service: Service, key: str) -> None:
    """All get the one answer, in any order; a streaming retry gets every token from the first on."""
    answers: list[dict[str, Any]] = []

    def ask() -> None:
        with make_client(service.url) as http:
            answers.append(post(http, "/generate", {"prompt": "[hold]", "temperature": 1.0}, key).json())

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    until(lambda: len(service.engine.claimed) == 1)
    body = {"prompt": "[hold]", "temperature": 1.0, "stream": True}
    with service.http.stream("POST", "/generate", json=body, headers={"Idempotency-Key": key}) as retry:
        chunks = retry.iter_text()
        seen = next(chunks)
        service.engine.release()
        seen += "".join(chunks)
    for thread in threads:
        thread.join(10)
    found = events(seen)
    assert [event_id for name, event_id, _ in found if name == "token"] == list("012345")
    assert answers == [found[-1][2]] * 8
    assert len(service.engine.claimed) == 1


def test_a_retry_at_another_front_door_gets_the_same_request(service: Service, key: str) -> None:
    """The key lies in the spool, not in a process."""
    with serving(service.settings) as other, make_client(other) as http:
        body = {"prompt": "hi", "background": True}
        first, retry = post(service.http, "/generate", body, key), post(http, "/generate", body, key)
    assert first.json()["id"] == retry.json()["id"]
    assert retry.status_code == 202


def test_another_body_under_the_same_key_is_a_conflict(service: Service, key: str) -> None:
    """409 in our form; x-should-retry stops automatic retries."""
    assert post(service.http, "/generate", {"prompt": "hi", "seed": 5}, key).status_code == 200
    for body in ({"prompt": "ho", "seed": 5}, {"prompt": "hi", "seed": 6}, {"prompt": "hi", "max_tokens": 2}):
        answer = post(service.http, "/generate", body, key)
        assert answer.status_code == 409, body
        assert answer.headers["x-should-retry"] == "false"
        error = answer.json()["error"]
        assert (error["code"], error["param"]) == ("idempotency_conflict", "Idempotency-Key")
        assert "internal" not in error["message"]
    assert len(service.engine.claimed) == 1


@pytest.mark.parametrize("key", ["", "a b", "x" * 256, "ü"])
def test_a_key_that_is_none_is_a_400(service: Service, key: str) -> None:
    """Visible ASCII characters, up to 255."""
    headers = {"Idempotency-Key": key.encode()}
    answer = service.http.post("/generate", json={"prompt": "hi"}, headers=headers)  # type: ignore[arg-type]
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "Idempotency-Key"


def test_keys_of_two_owners_are_two_keys(tmp_path: Path) -> None:
    """Nobody gets at another one's request by guessing its Idempotency-Key."""
    (tmp_path / "keys").write_text("mine\ntheirs\n")
    with running_service(tmp_path, {"API_KEYS_FILE": str(tmp_path / "keys")}) as service:
        ids = set()
        for key in ("mine", "theirs"):
            headers = {"Authorization": f"Bearer {key}", "Idempotency-Key": "1"}
            ids.add(service.http.post("/generate", json={"prompt": "hi"}, headers=headers).json()["id"])
        assert len(ids) == 2


def test_a_retry_after_the_client_left_keeps_the_request(service: Service, key: str) -> None:
    """The client's own time-out was shorter than the answer: its retry within the grace time takes over."""
    connection = post_by_hand(service, '{"prompt": "[hold]"}', f"Idempotency-Key: {key}\r\n")
    until(lambda: len(service.engine.claimed) == 1)
    connection.close()
    other = post_by_hand(service, '{"prompt": "[hold]"}')
    until(lambda: len(service.engine.claimed) == 2)
    with service.http.stream(
        "POST", "/generate", json={"prompt": "[hold]", "stream": True}, headers={"Idempotency-Key": key}
    ) as retry:
        chunks = retry.iter_text()
        next(chunks)
        other.close()
        until(lambda: service.spool.state(service.engine.claimed[1].id) == "done")
        service.engine.release()
        assert events("".join(chunks))[-1][2]["finish_reason"] == "length"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service whose queue has room for two."""
    with running_service(tmp_path_factory.mktemp("small"), {"MAX_QUEUE_DEPTH": "2"}) as running:
        yield running


@pytest.mark.parametrize(
    ("trouble", "status"),
    [("ring down", 503), ("ring loading", 202), ("queue full", 429), ("disk full", 507), ("no writing", 503)],
)
def test_a_known_key_gets_its_id_whatever_the_service_lacks(
    small: Service, monkeypatch: pytest.MonkeyPatch, key: str, trouble: str, status: int
) -> None:
    """A new request is refused; the retry was accepted long ago, whether it is done or waits."""
    service = small.start_over()
    body = {"prompt": "hi", "background": True}
    done = post(service.http, "/generate", body, key).json()["id"]
    until(lambda: service.spool.state(done) == "done")
    service.engine.open_up(0)
    waiting = post(service.http, "/generate", body, f"{key}-2").json()["id"]
    if trouble == "queue full":
        assert post(service.http, "/generate", body, f"{key}-filler").status_code == 202
    make_trouble(service, monkeypatch, trouble)
    assert post(service.http, "/generate", body, f"{key}-another").status_code == status
    for known, first in ((key, done), (f"{key}-2", waiting)):
        for _ in range(2):
            retry = post(service.http, "/generate", body, known)
            assert (retry.status_code, retry.json()["id"]) == (202, first)
        conflict = post(service.http, "/generate", {**body, "prompt": "ho"}, known)
        assert conflict.status_code == 409
    answer = post(service.http, "/generate", {"prompt": "hi"}, key)
    assert (answer.status_code, answer.json()["id"]) == (200, done)


def make_trouble(service: Service, monkeypatch: pytest.MonkeyPatch, trouble: str) -> None:
    if trouble == "ring down":
        write_json(service.settings.run_dir / "supervisor.json", {"state": "failed", "reason": "no memory"})
    elif trouble == "ring loading":
        service.engine.say("loading")
    elif trouble == "disk full":
        space = DiskSpace(num_free_bytes=0, num_free_files=None)
        monkeypatch.setattr("spool.fsio.FileSystem.disk_space", lambda *_: space)
    elif trouble == "no writing":

        def refuse(*_: object, **__: object) -> None:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

        monkeypatch.setattr("spool.fsio.FileSystem.link", refuse)
