"""Fetching, cancelling, time-outs and clients that leave."""

import threading
from pathlib import Path

import pytest

from config.run_files import write_json
from tests.services.frontdoor_service import (
    Service,
    events,
    make_client,
    post_by_hand,
    running_service,
    serving,
    until,
)

ABSENT = "0" * 32


def start_held(service: Service) -> str:
    """Start a request in the background that stays unfinished; returns its id."""
    answer = service.http.post("/generate", json={"prompt": "[hold]", "background": True})
    return str(answer.json()["id"])


def test_a_background_request_can_be_followed(service: Service) -> None:
    """202 with id, status_url and place. First its state, then the whole answer, also by OpenAI's form of the
    id.
    """
    accepted = service.http.post("/generate", json={"prompt": "[hold]", "background": True})
    assert accepted.status_code == 202
    assert accepted.json().keys() == {"id", "status_url", "position", "estimated_wait_s"}
    url, request_id = accepted.headers["location"], accepted.json()["id"]
    assert url == accepted.json()["status_url"]
    until(lambda: service.http.get(url).json()["state"] == "active")
    service.engine.release()
    until(lambda: service.http.get(f"/requests/chatcmpl-{request_id}").json()["state"] == "done")
    found = service.http.get(url).json()
    assert (found["id"], found["text"]) == (request_id, "Grüße, wörld! 🎉 n0 n1 ")
    assert found["finish_reason"] == "length"
    assert found["usage"]["completion_tokens"] == 6


def test_the_log_names_a_request_by_both_of_its_ids(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    """Accepted and cancelled: what rank 0 logs under the client's id can be followed here; no text of it."""
    with caplog.at_level("INFO", logger="frontdoor"):
        body = {"prompt": "[hold] secret canary", "background": True}
        request_id = service.http.post("/generate", json=body, headers={"X-Request-Id": "job-7"}).json()["id"]
        service.http.delete(f"/requests/{request_id}", headers={"X-Request-Id": "job-8"})
        mine = service.http.post("/generate", json={"prompt": "hi"}).json()["id"]
    lines = [record.getMessage() for record in caplog.records]
    assert f"request {request_id} (job-7) accepted" in lines
    assert f"its owner cancelled request {request_id} (X-Request-Id job-8)" in lines
    assert f"request {mine} accepted" in lines
    assert "canary" not in caplog.text


def test_a_failed_request_tells_its_error(service: Service) -> None:
    """The state is done, and the error is that of the result; a stream has its tokens first."""
    answer = service.http.post("/generate", json={"prompt": "[fail]", "background": True})
    url = answer.json()["status_url"]
    until(lambda: service.http.get(url).json()["state"] == "done")
    assert service.http.get(url).json()["error"]["code"] == "poison"
    found = events(service.http.get(f"{url}/stream").text)
    assert [name for name, _, _ in found] == ["token", "error"]
    assert found[-1][2]["error"]["code"] == "poison"


def test_a_request_can_be_cancelled(service: Service) -> None:
    """What was generated so far is the answer; a second cancel has nothing to do."""
    request_id = start_held(service)
    answer = service.http.delete(f"/requests/{request_id}")
    assert (answer.status_code, answer.json()["cancelled"]) == (200, True)
    until(lambda: service.http.get(f"/requests/{request_id}").json()["state"] == "done")
    assert service.http.get(f"/requests/{request_id}").json()["finish_reason"] == "cancelled"
    again = service.http.delete(f"/requests/{request_id}").json()
    assert (again["cancelled"], again["state"]) == (False, "done")


@pytest.mark.parametrize("request_id", [ABSENT, "../../etc/passwd", "..%2f..", "x", "A" * 32, "0" * 33])
def test_an_unknown_id_is_a_404(service: Service, request_id: str) -> None:
    """Ids that are unknown or no ids at all are the same to a client."""
    for method, more in (("GET", ""), ("GET", "/stream"), ("DELETE", "")):
        answer = service.http.request(method, f"/requests/{request_id}{more}")
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "not_found"


def test_a_client_that_leaves_cancels_its_request(service: Service) -> None:
    """Without grace time the request ends as soon as its client is gone, streaming or not."""
    for number, stream in enumerate(("true", "false"), 1):
        connection = post_by_hand(service, f'{{"prompt": "[hold]", "stream": {stream}}}')
        until(lambda: len(service.engine.claimed) == number)  # noqa: B023 - called at once
        connection.close()
        until(lambda: service.spool.depth().num_active == 0)
        result = service.spool.read_result(service.engine.claimed[-1].id)
        assert result is not None
        assert result.finish_reason == "cancelled"


def test_a_time_out_is_a_504_and_the_request_goes_on(tmp_path: Path) -> None:
    """The error has the id and advises against a retry; the answer can be fetched later."""
    with running_service(tmp_path, {"REQUEST_TIMEOUT": "0.2"}) as service:
        answer = service.http.post("/generate", json={"prompt": "[hold]"})
        assert answer.status_code == 504
        assert answer.headers["x-should-retry"] == "false"
        error = answer.json()["error"]
        assert error["code"] == "timeout"
        assert error["id"] in error["message"]
        streamed = service.http.post("/generate", json={"prompt": "[hold]", "stream": True})
        assert '"code":"timeout"' in streamed.text
        service.engine.release()
        url = answer.headers["location"]
        until(lambda: service.http.get(url).json()["state"] == "done")
        assert service.http.get(url).json()["finish_reason"] == "length"


def test_a_cancel_by_another_client_ends_the_wait(service: Service) -> None:
    """The native answer says cancelled; the OpenAI routes have no such reason and answer with an error."""
    outcome: list[int] = []

    def ask() -> None:
        body = {"messages": [{"role": "user", "content": "[hold]"}]}
        outcome.append(service.http.post("/v1/chat/completions", json=body).status_code)

    waiting = threading.Thread(target=ask)
    waiting.start()
    until(lambda: len(service.engine.claimed) == 1)
    service.http.delete(f"/requests/{service.engine.claimed[-1].id}")
    waiting.join(timeout=10)
    assert outcome == [410]


def test_a_full_queue_is_a_429_with_retry_after(tmp_path: Path) -> None:
    """Over the limit nothing is accepted, and Retry-After says when to retry."""
    with running_service(tmp_path, {"MAX_QUEUE_DEPTH": "1"}) as service:
        settings = service.settings
    with serving(settings) as url, make_client(url) as http:  # no rank 0 claims
        body = {"prompt": "hi", "background": True}
        first, second = (http.post("/generate", json=body) for _ in range(2))
        for at in range(3):
            queue, totals = {"num_waiting": 1, "num_running": 1}, {"requests": {"stop": at}}
            status = {"updated_unix": 1000.0 + 4 * at, "queue": queue, "totals": totals}
            write_json(settings.run_dir / "ring.json", status)
            third = http.post("/generate", json=body)
    assert first.status_code == 202
    assert second.status_code == 429
    assert int(second.headers["retry-after"]) > 0
    assert second.json()["error"]["code"] == "rate_limit_exceeded"
    assert third.headers["retry-after"] == "4"  # one request in four seconds, by rank 0's own totals
