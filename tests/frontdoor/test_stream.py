"""GET /requests/{id}/stream: from any token, of a waiting, running or finished request, at any front door."""

from typing import Any

import pytest

from spool import TokenRecord
from tests.services.frontdoor_service import Service, events, make_client, serving, until

TEXT = "Grüße, wörld! 🎉 n0 n1 "


def ask(service: Service, prompt: str = "hi", **body: Any) -> str:
    """Ask in the background; return the id."""
    answer = service.http.post("/generate", json={"prompt": prompt, "background": True, **body})
    assert answer.status_code == 202
    return str(answer.json()["id"])


def follow(service: Service, request_id: str, query: str = "", **headers: str) -> list[Any]:
    answer = service.http.get(f"/requests/{request_id}/stream{query}", headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    return events(answer.text)


def indices(found: list[Any]) -> list[int]:
    return [int(event_id) for name, event_id, _ in found if name == "token"]


def test_a_finished_request_is_told_again(service: Service) -> None:
    """All tokens, and the very answer that GET gives; without background the same."""
    request_id = str(service.http.post("/generate", json={"prompt": "hi"}).json()["id"])
    found = follow(service, request_id)
    assert indices(found) == [0, 1, 2, 3, 4, 5]
    assert "".join(data["text"] for name, _, data in found if name == "token") == TEXT
    fetched = service.http.get(f"/requests/{request_id}").json()
    assert found[-1][0] == "done"
    assert {"state": "done", **found[-1][2]} == fetched
    assert follow(service, f"chatcmpl-{request_id}") == found


@pytest.mark.parametrize(
    ("query", "headers", "first"),
    [
        ("?from=4", {}, 4),
        ("?from=0", {}, 0),
        ("?from=6", {}, 6),
        ("", {"Last-Event-ID": "2"}, 3),
        ("?from=0", {"Last-Event-ID": "5"}, 6),
        ("?from=7", {}, 0),
    ],
)
def test_it_goes_on_from_any_token(service: Service, query: str, headers: dict[str, str], first: int) -> None:
    """?from=N is the first index wanted, Last-Event-ID the last one seen, which wins. Who has tokens that the
    log lost gets a reset and all tokens.
    """
    request_id = str(service.http.post("/generate", json={"prompt": "hi"}).json()["id"])
    found = follow(service, request_id, query, **headers)
    assert indices(found) == list(range(first, 6))
    others = [name for name, _, _ in found if name != "token"]
    assert others == (["reset", "done"] if query == "?from=7" else ["done"])


@pytest.mark.parametrize("query", ["?from=-1", "?from=x", "?from=", "?from=1e3", "?from=" + "9" * 10])
def test_a_start_that_is_no_index_is_a_400(service: Service, query: str) -> None:
    """On the query and in the header alike."""
    request_id = ask(service)
    answer = service.http.get(f"/requests/{request_id}/stream{query}")
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "from"
    answer = service.http.get(f"/requests/{request_id}/stream", headers={"Last-Event-ID": "abc"})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "Last-Event-ID"


def test_waiting_and_running_requests_are_followed_at_any_front_door(service: Service) -> None:
    """Attached before it is claimed, at two front doors at once, from different tokens."""
    service.start_over(max_open=0)
    with serving(service.settings) as other, make_client(other) as http:
        request_id = ask(service, "[hold]")
        with (
            service.http.stream("GET", f"/requests/{request_id}/stream") as here,
            http.stream("GET", f"/requests/{request_id}/stream?from=0") as there,
        ):
            streams = [here.iter_text(), there.iter_text()]
            seen = [next(stream) for stream in streams]
            assert all(text.startswith(f": accepted {request_id}") for text in seen)
            service.engine.open_up(8)
            for number, stream in enumerate(streams):
                while "event: token" not in seen[number]:
                    seen[number] += next(stream)
            with http.stream("GET", f"/requests/{request_id}/stream", headers={"Last-Event-ID": "0"}) as late:
                service.engine.release()
                rest = late.read().decode()
            for number, stream in enumerate(streams):
                seen[number] += "".join(stream)
        assert indices(events(seen[0])) == indices(events(seen[1])) == [0, 1, 2, 3, 4, 5]
        assert indices(events(rest)) == [1, 2, 3, 4, 5]
        assert events(rest)[-1] == events(seen[0])[-1]


def test_a_log_that_was_cut_is_a_reset(service: Service) -> None:
    """The log lost tokens that were sent: the stream sends a reset and the new ones from 0."""
    service.start_over(max_open=0)
    request_id = ask(service)
    path = service.spool.folder.stream / request_id
    owner = service.engine._owner
    with service.http.stream("GET", f"/requests/{request_id}/stream") as answer:
        chunks = answer.iter_text()
        seen = next(chunks)
        with owner.append_log(request_id) as log:
            log.append([TokenRecord(0, 7, "old "), TokenRecord(1, 8, "words ")])
        while "words" not in seen:
            seen += next(chunks)
        path.rename(path.with_name("b" * 32))
        service.engine.open_up(8)
        seen += "".join(chunks)
    found = events(seen)
    assert [name for name, _, _ in found] == ["token", "token", "reset", *["token"] * 6, "done"]
    assert indices(found[3:]) == [0, 1, 2, 3, 4, 5]


def test_comments_carry_the_place_in_the_queue(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Position and, once the ring's rate is known, an estimate; the 202 and GET have them as well."""
    monkeypatch.setattr("frontdoor.routes.generate.NativeRenderer.patience_seconds", 0.01)
    monkeypatch.setattr("frontdoor.queue_estimate.MAX_LISTING_AGE_SECONDS", 0.0)
    monkeypatch.setattr("frontdoor.answering.COMMENT_SECONDS", 0.01)
    service.start_over(max_open=0)
    for number in range(3):
        queue = {"num_waiting": 3, "num_running": 1, "oldest_wait_s": 1.0}
        totals = {"requests": {"stop": number}}
        service.engine.say("ready", queue=queue, totals=totals, updated_unix=1000.0 + number, started_unix=1)
        ask(service)
    posted = service.http.post("/generate", json={"prompt": "hi", "background": True}).json()
    assert (posted["position"], posted["estimated_wait_s"]) == (3, 4.0)
    request_id = posted["id"]
    assert service.http.get(f"/requests/{request_id}").json()["position"] == 3
    with service.http.stream("GET", f"/requests/{request_id}/stream") as answer:
        seen = ""
        for text in answer.iter_text():
            seen += text
            if "waiting" in seen and "\n\n" in seen.partition("waiting")[2]:
                break
    assert ": waiting, position 3, about 4 s\n\n" in seen
    service.engine.open_up(8)
    until(lambda: service.spool.state(request_id) == "done")
