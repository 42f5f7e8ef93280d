"""Limits of API keys over real HTTP: what is refused, what counts, and what an edit of the file does."""

import hashlib
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from config.api_keys import hash_key
from frontdoor.app import make_app
from frontdoor.http.auth import Keys
from frontdoor.http.errors import Unauthorized
from frontdoor.key_limits import RateWindow
from frontdoor.supervised import LiveSettings
from tests.services.frontdoor_service import (
    Service,
    make_client,
    make_settings,
    running_service,
    serving_app,
    until,
)

# Each test has keys of its own: a rate is not forgotten between tests.
KEYS = f"""
plain
two name=two max_in_flight=2
again name=again max_in_flight=1
many name=many max_in_flight=2 requests_per_minute=4
urgent name=urgent max_in_flight=1
rated name=rated requests_per_minute=3
failed name=failed requests_per_minute=2
routes name=routes requests_per_minute=1
official name=official requests_per_minute=1
free name=free max_in_flight=0
sha256:{hashlib.sha256(b"hashed").hexdigest()} name=hashed
"""
BACKGROUND = {"prompt": "[hold]", "background": True}


def of(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def post(service: Service, key: str, body: dict[str, Any] | None = None, **headers: str) -> httpx2.Response:
    return service.http.post("/generate", json=body or {"prompt": "hi"}, headers=of(key) | headers)


def owner_of(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def test_a_key_has_at_most_its_requests_without_a_result(service: Service) -> None:
    """Background requests count; a result frees the place at once, and other keys are not concerned."""
    ids = [post(service, "two", BACKGROUND).json()["id"] for _ in range(2)]
    refused = post(service, "two")
    assert refused.status_code == 429
    error = refused.json()["error"]
    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert "max_in_flight=2" in error["message"]
    assert int(refused.headers["retry-after"]) >= 1
    assert post(service, "plain").status_code == 200
    for path in ("/v1/models", f"/requests/{ids[0]}", "/metrics"):
        assert service.http.get(path, headers=of("two")).status_code == 200
    service.engine.release()
    until(lambda: service.spool.state(ids[0]) == "done")
    assert [post(service, "two").status_code for _ in range(20)] == [200] * 20


def test_a_client_that_left_and_a_front_door_that_restarts_change_nothing(tmp_path: Path) -> None:
    """The spool is the truth: a second front door counts what the first accepted, in its grace time too."""
    keys = tmp_path / "keys"
    keys.write_text("two max_in_flight=2\n")
    overrides = {"API_KEYS_FILE": str(keys), "DISCONNECT_GRACE_SECONDS": "60"}
    with running_service(tmp_path, overrides) as service:
        post(service, "two", BACKGROUND)
        body = {"prompt": "[hold]", "stream": True}
        with service.http.stream("POST", "/generate", json=body, headers=of("two")) as answer:
            next(answer.iter_text())
        until(lambda: len(service.spool.ending_later()) == 1)
        assert post(service, "two").status_code == 429
        with (
            serving_app(make_app(service.settings), service.settings) as url,
            make_client(url) as http,
        ):
            assert http.post("/generate", json={"prompt": "hi"}, headers=of("two")).status_code == 429
        service.engine.release()
        until(lambda: post(service, "two").status_code == 200)


def test_a_known_idempotency_key_is_answered_over_the_limit(service: Service) -> None:
    """Nothing new is accepted for it."""
    key = {"Idempotency-Key": "k"}
    first = post(service, "again", BACKGROUND, **key).json()["id"]
    assert post(service, "again").status_code == 429
    assert post(service, "again", BACKGROUND, **key).json()["id"] == first


def test_answers_of_one_body_count_each(service: Service) -> None:
    """All or none; more than the limit itself can never be, so that is a 400 and no retry."""
    assert post(service, "many", {"prompt": "hi", "n": 3}).status_code == 400
    assert post(service, "many", {"prompt": "hi", "n": 2}).status_code == 200
    assert post(service, "many", BACKGROUND).status_code == 202
    assert post(service, "many", {"prompt": "hi", "n": 2}).status_code == 429
    assert post(service, "many").status_code == 200  # what was refused does not count


def test_no_priority_evades_the_limit(service: Service) -> None:
    """Lines of a batch have priority 9, and a client may ask for it."""
    assert post(service, "urgent", {**BACKGROUND, "priority": 9}).status_code == 202
    assert post(service, "urgent", {**BACKGROUND, "priority": 9}).status_code == 429


def test_requests_at_once_do_not_pass_the_limit_together(tmp_path: Path) -> None:
    """With a disk that syncs, eight bodies are on their way to the spool side by side."""
    keys = tmp_path / "keys"
    keys.write_text("key max_in_flight=3\n")
    with running_service(tmp_path, {"API_KEYS_FILE": str(keys), "SPOOL_DURABILITY": "power"}) as service:
        found: list[int] = []
        threads = [
            threading.Thread(target=lambda: found.append(post(service, "key", BACKGROUND).status_code))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(found) == [202] * 3 + [429] * 5


def test_a_key_has_its_requests_in_a_minute(service: Service) -> None:
    """The headers count down; Retry-After is when the oldest is a minute old."""
    answers = [post(service, "rated") for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200] * 3 + [429]
    shown = [answer.headers["x-ratelimit-remaining-requests"] for answer in answers]
    assert shown == ["2", "1", "0", "0"]
    refused = answers[-1].headers
    assert refused["x-ratelimit-limit-requests"] == "3"
    assert refused["x-ratelimit-reset-requests"] in ("59s", "60s")
    assert refused["retry-after"] in ("58", "59", "60")
    assert "requests_per_minute=3" in answers[-1].json()["error"]["message"]
    assert "x-ratelimit-limit-requests" not in post(service, "plain").headers


def test_what_is_refused_for_another_reason_does_not_count(service: Service) -> None:
    """A prompt that is too long costs nothing of the rate."""
    for _ in range(3):
        assert post(service, "failed", {"prompt": "long " * 100}).status_code == 400
    assert [post(service, "failed").status_code for _ in range(3)] == [200, 200, 429]


def test_reads_are_not_limited(service: Service) -> None:
    """/tokenize accepts nothing."""
    assert [post(service, "routes").status_code for _ in range(2)] == [200, 429]
    assert service.http.post("/tokenize", json={"prompt": "hi"}, headers=of("routes")).status_code == 200
    for path in ("/health", "/v1/models", "/metrics"):
        assert service.http.get(path, headers=of("routes")).status_code == 200


def test_the_official_client_understands_the_refusal(service: Service) -> None:
    """Its own exception, with the server's headers."""
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key="official", max_retries=0) as client:
        ask = client.chat.completions.with_raw_response.create
        first = ask(model="tiny", messages=[{"role": "user", "content": "hi"}])
        assert first.headers["x-ratelimit-remaining-requests"] == "0"
        with pytest.raises(openai.RateLimitError) as raised:
            ask(model="tiny", messages=[{"role": "user", "content": "hi"}])
    assert raised.value.code == "rate_limit_exceeded"
    assert raised.value.response.headers["retry-after"]


def test_a_hash_in_the_file_accepts_its_key_only(service: Service) -> None:
    """The hash itself is no key."""
    assert post(service, "hashed").status_code == 200
    digest = hashlib.sha256(b"hashed").hexdigest()
    for wrong in (digest, f"sha256:{digest}", "hashe"):
        assert post(service, wrong).status_code == 401


@pytest.mark.parametrize(("encoding", "is_known"), [("utf-8", True), ("latin-1", True), ("cp437", False)])
def test_a_key_may_have_any_letters(tmp_path: Path, encoding: str, is_known: bool) -> None:
    """curl sends them as UTF-8, Python's clients as Latin-1."""
    (tmp_path / "keys").write_text("sk-größà\n", encoding="utf-8")
    keys, sent = Keys(tmp_path / "keys"), "Bearer sk-größà".encode(encoding).decode("latin-1")
    with nullcontext() if is_known else pytest.raises(Unauthorized):
        assert keys.owner(sent) == hash_key("sk-größà")[:16]


def test_the_settings_are_the_defaults_of_all_keys(tmp_path: Path) -> None:
    """Live; a line's own limit goes before them, and without a file of keys they limit nothing."""
    keys = tmp_path / "keys"
    keys.write_text("plain\nfree max_in_flight=0 requests_per_minute=0\n")
    settings = make_settings(tmp_path, {"API_KEYS_FILE": str(keys), "KEY_MAX_IN_FLIGHT": "1"})
    app = make_app(settings)
    with serving_app(app, settings) as url, make_client(url) as http:

        def ask(key: str) -> int:
            return http.post("/generate", json=BACKGROUND, headers=of(key)).status_code

        assert [ask("plain"), ask("plain"), ask("free"), ask("free")] == [202, 429, 202, 202]
        LiveSettings(app).on_settings({"KEY_MAX_IN_FLIGHT": 0, "KEY_REQUESTS_PER_MINUTE": 2})
        assert [ask("plain"), ask("plain"), ask("plain"), ask("free")] == [202, 202, 429, 202]
    open_to_all = make_settings(tmp_path, {"KEY_MAX_IN_FLIGHT": "1", "KEY_REQUESTS_PER_MINUTE": "1"})
    with serving_app(make_app(open_to_all), open_to_all) as url, make_client(url) as http:
        assert [http.post("/generate", json=BACKGROUND).status_code for _ in range(3)] == [202] * 3


@contextmanager
def edited_service(folder: Path, lines: str) -> Iterator[tuple[Service, Path]]:
    """A service and its file of keys."""
    keys = folder / "keys"
    keys.write_text(lines)
    with running_service(folder, {"API_KEYS_FILE": str(keys)}) as service:
        yield service, keys


def test_an_edit_of_the_keys_holds_for_the_next_request(tmp_path: Path) -> None:
    """A new key, a new limit and a revoked key; a stream that has begun goes on to its end."""
    with edited_service(tmp_path, "old\nother\n") as (service, keys):
        body = {"prompt": "[hold]", "stream": True}
        with service.http.stream("POST", "/generate", json=body, headers=of("old")) as answer:
            chunks = answer.iter_text()
            assert next(chunks).startswith(": accepted")
            keys.write_text("new requests_per_minute=1\nother\n")
            assert post(service, "old").status_code == 401
            assert [post(service, "new").status_code for _ in range(2)] == [200, 429]
            service.engine.release()
            assert "event: done" in "".join(chunks)


def test_a_broken_edit_keeps_the_earlier_keys(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One line in the log, with the place and without the key; the next good edit holds."""
    with edited_service(tmp_path, "old\n") as (service, keys), caplog.at_level(logging.INFO, "frontdoor"):
        for broken in ("new secret-word\n", ""):
            caplog.clear()
            keys.write_text(broken)
            assert [post(service, key).status_code for key in ("old", "new")] == [200, 401]
            (line,) = [record.message for record in caplog.records if record.levelno >= logging.ERROR]
            assert str(keys) in line
            assert "the earlier 1 keys stay" in line
            assert "secret-word" not in line
        keys.unlink()
        assert post(service, "old").status_code == 200
        keys.write_text("new\n")
        assert [post(service, key).status_code for key in ("old", "new")] == [401, 200]


def test_a_disk_that_refuses_for_a_moment_delays_a_revocation_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The file is read again at the next request."""
    with edited_service(tmp_path, "old\n") as (service, keys):
        keys.write_text("new\n")
        with monkeypatch.context() as failing:

            def refuse(*_: object, **__: object) -> str:
                raise OSError(24, "Too many open files")

            failing.setattr("pathlib.Path.read_text", refuse)
            assert [post(service, "old").status_code for _ in range(2)] == [200, 200]
        assert post(service, "old").status_code == 401
        assert sum("Too many open files" in record.message for record in caplog.records) == 1


def test_metrics_count_by_key(tmp_path: Path) -> None:
    """By name or owner, never the key; rank 0's counts, and this process's refusals."""
    with edited_service(tmp_path, "a-key name=alice requests_per_minute=1\nbare\n") as (service, _):
        counts = {"requests": 3, "prompt_tokens": 40, "generation_tokens": 50}
        owners = {owner_of("a-key"): counts, "0123456789abcdef": counts}
        service.engine.say("ready", owners=owners)
        for _ in range(3):
            post(service, "a-key")
        text = service.http.get("/metrics", headers=of("bare")).text
        assert "owners" not in service.http.get("/health").text
    assert {
        'ring_key_requests_total{key="alice"} 3.0',
        'ring_key_prompt_tokens_total{key="alice"} 40.0',
        'ring_key_generation_tokens_total{key="alice"} 50.0',
        f'ring_key_requests_total{{key="{owner_of("bare")}"}} 0.0',
        'ring_key_requests_total{key="0123456789abcdef"} 3.0',  # revoked
        'ring_key_rejected_total{key="alice",reason="requests_per_minute"} 2.0',
    } <= set(text.splitlines())
    assert "a-key" not in text


def test_metrics_know_no_key_without_a_file_of_keys(tmp_path: Path) -> None:
    """Nothing changes for a service without keys."""
    with running_service(tmp_path) as service:
        assert "ring_key" not in service.http.get("/metrics").text


def test_retry_after_follows_the_key_s_share_of_the_ring(tmp_path: Path) -> None:
    """Two of four open requests are the key's, and one ends in four seconds: its own in eight."""
    with edited_service(tmp_path, "key max_in_flight=2\nother\n") as (service, _):
        for key in ("key", "key", "other", "other"):
            post(service, key, BACKGROUND)
        for at in range(5):
            totals, queue = {"requests": {"stop": at / 4}}, {"num_running": 4}
            service.engine.say("ready", updated_unix=1000.0 + at, started_unix=1, totals=totals, queue=queue)
            refused = post(service, "key")
        assert refused.headers["retry-after"] == "8"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_window_slides() -> None:
    """At no time more than the limit within 60 seconds; `reset` is when the newest is a minute old."""
    clock = Clock()
    window = RateWindow(clock)
    assert window.headers(3)["x-ratelimit-reset-requests"] == "0s"
    for at, names in ((0.0, "a"), (10.0, "b"), (20.0, "c")):
        clock.now = at
        assert window.add(names, 3) is None
    assert window.add("de", 3) == 50.0
    assert window.headers(3) == {
        "x-ratelimit-limit-requests": "3",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "60s",
    }
    clock.now = 60.0
    assert window.add("d", 3) is None
    assert window.add("e", 3) == 10.0
    window.remove("d")
    assert window.add("e", 3) is None
    assert window.add("f", 1) == 60.0  # a lower limit from an edit
