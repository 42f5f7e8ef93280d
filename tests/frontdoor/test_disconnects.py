"""Clients that leave, come back, attach, and do so at another front door."""

import errno
import json
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from frontdoor.disconnects import Disconnects
from spool import Spool
from tests.fakes.spool_fakes import FailingFileSystem, submit
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


def make_disconnects(spool: Spool) -> Disconnects:
    return Disconnects(spool, grace_seconds=3600)


def test_attached_clients_keep_a_request_and_the_last_starts_the_grace_time(spool: Spool) -> None:
    """Only after its own client has left: following another client's request never cancels it."""
    disconnects, others, mine = make_disconnects(spool), submit(spool).id, submit(spool).id
    with disconnects.following(others):
        pass
    with disconnects.following(mine):
        with disconnects.following(mine):
            disconnects.client_left(mine, may_return=False)
        assert spool.names(spool.folder.cancel) == []
    assert spool.ending_later() == {mine}
    with disconnects.following(mine):
        assert spool.ending_later() == set()
        disconnects.client_returned(mine)
    assert spool.ending_later() == set()


def test_who_is_attached_keeps_what_another_front_door_would_end(spool: Spool) -> None:
    """Each looks now and then; the one whose client goes last sets the grace time again."""
    here, there, request_id = make_disconnects(spool), make_disconnects(spool), submit(spool).id
    with there.following(request_id):
        with here.following(request_id):
            here.client_left(request_id)
        assert spool.ending_later() == {request_id}
        there.keep_followed()
        assert spool.ending_later() == set()
    assert spool.ending_later() == {request_id}


def test_a_spool_that_says_no_stops_no_client(tmp_path: Path) -> None:
    """Attaching, coming back, looking and leaving go on; what was asked for stays asked for."""
    fs = FailingFileSystem("names", errno.EMFILE, "cancel")
    spool = Spool.open(tmp_path / "spool", durability="process", fs=fs)
    disconnects, request_id = make_disconnects(spool), submit(spool).id
    disconnects.client_left(request_id)
    fs.is_failing = True
    with disconnects.following(request_id):
        disconnects.keep_followed()
    disconnects.client_returned(request_id)
    disconnects.client_left(submit(spool).id)
    fs.is_failing = False
    assert request_id in spool.ending_later()


def leave_stream(service: Service) -> str:
    """Begin a stream that is held, leave it, and return the request's id."""
    num_before = len(service.engine.claimed)
    connection = post_by_hand(service, '{"prompt": "[hold]", "stream": true}')
    until(lambda: len(service.engine.claimed) > num_before)
    connection.close()
    return service.engine.claimed[-1].id


@pytest.fixture(scope="module")
def forever(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service whose grace time never ends."""
    with running_service(tmp_path_factory.mktemp("forever"), {"DISCONNECT_GRACE_SECONDS": "3600"}) as running:
        yield running


def test_attaching_within_the_grace_time_keeps_the_request(service: Service) -> None:
    """Far beyond the grace time the answer goes on to its end, at this front door or another."""
    with serving(service.settings) as other, make_client(other) as http, ExitStack() as stack:
        answers = []
        for door in (service.http, http):
            kept = leave_stream(service)
            answer = stack.enter_context(door.stream("GET", f"/requests/{kept}/stream"))
            chunks = answer.iter_text()
            answers.append((kept, chunks, next(chunks)))
        given_up = leave_stream(service)
        until(lambda: service.spool.state(given_up) == "done")
        assert [service.spool.state(kept) for kept, _, _ in answers] == ["active", "active"]
        service.engine.release()
        for _, chunks, seen in answers:
            assert events(seen + "".join(chunks))[-1][2]["finish_reason"] == "length"


def test_fetching_within_the_grace_time_keeps_the_request(service: Service) -> None:
    """A look takes the cancellation back."""
    kept, given_up = leave_stream(service), leave_stream(service)

    def is_other_cancelled() -> bool:
        service.http.get(f"/requests/{kept}")
        return service.spool.state(given_up) == "done"

    until(is_other_cancelled)
    assert service.spool.state(kept) == "active"


def test_who_attached_and_leaves_starts_the_grace_time_anew(service: Service) -> None:
    """After the last client has left, the request is cancelled."""
    request_id = leave_stream(service)
    with service.http.stream("GET", f"/requests/{request_id}/stream") as answer:
        next(answer.iter_raw())
    until(lambda: service.spool.state(request_id) == "done")
    result = service.spool.read_result(request_id)
    assert result is not None
    assert result.finish_reason == "cancelled"


def test_a_background_request_is_never_cancelled_by_leaving(service: Service) -> None:
    """Whoever looks in on it may go again."""
    posted = service.http.post("/generate", json={"prompt": "[hold]", "background": True})
    url = posted.json()["status_url"]
    until(lambda: len(service.engine.claimed) == 1)
    with service.http.stream("GET", f"{url}/stream") as answer:
        next(answer.iter_raw())
    gone = leave_stream(service)
    until(lambda: service.spool.state(gone) == "done")
    assert service.http.get(url).json()["state"] == "active"
    service.engine.release()
    until(lambda: service.http.get(url).json()["state"] == "done")
    assert service.http.get(url).json()["finish_reason"] == "length"


def test_a_request_that_still_waits_is_cancelled_too(service: Service) -> None:
    """Its client leaves before the claim: it ends in the queue, and never runs."""
    service.start_over(max_open=0)
    connection = post_by_hand(service, '{"prompt": "hi", "stream": true}')
    until(lambda: service.spool.depth().num_waiting == 1)
    connection.close()
    until(lambda: service.spool.depth().num_waiting == 0)
    assert service.engine.claimed == []


V1 = {
    "/v1/chat/completions": (
        '{"messages": [{"role": "user", "content": "[hold]"}], "stream": %s, "max_tokens": 6}'
    ),
    "/v1/completions": '{"prompt": "[hold]", "stream": %s, "max_tokens": 6}',
    "/api/generate": '{"model": "tiny", "prompt": "[hold]", "stream": %s, "options": {"num_predict": 6}}',
}
ASKED = [(path, stream) for path in V1 for stream in ("true", "false")]


def close_after_eof(connection: socket.socket) -> None:
    """End the write side first, as some clients and proxies do."""
    connection.shutdown(socket.SHUT_WR)
    connection.close()


def reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@pytest.mark.parametrize("leave", [socket.socket.close, close_after_eof, reset])
def test_who_leaves_v1_without_a_key_is_cancelled_at_once(
    forever: Service, leave: Callable[[socket.socket], None]
) -> None:
    """Running or waiting, within a second and whatever the grace time; its neighbours go on."""
    service = forever.start_over(max_open=1 + len(ASKED))
    neighbour = service.http.post("/generate", json={"prompt": "[hold]", "background": True}).json()
    until(lambda: len(service.engine.claimed) == 1)
    connections = [post_by_hand(service, V1[path] % stream, path=path) for path, stream in ASKED]
    until(lambda: len(service.engine.claimed) == 1 + len(ASKED))
    running = [request.id for request in service.engine.claimed[1:]]
    connections += [post_by_hand(service, V1[path] % stream, path=path) for path, stream in ASKED]
    until(lambda: service.spool.depth().num_waiting == len(ASKED))
    left_at = time.monotonic()
    for connection in reversed(connections):  # those that wait first, or they would run
        leave(connection)
    until(lambda: (service.spool.depth().num_waiting, service.spool.depth().num_active) == (0, 1))
    assert time.monotonic() - left_at < 1
    results = [service.spool.read_result(one) for one in running]
    assert [result and result.finish_reason for result in results] == ["cancelled"] * len(ASKED)
    service.engine.release()
    url = neighbour["status_url"]
    until(lambda: service.http.get(url).json()["state"] == "done")
    assert service.http.get(url).json()["finish_reason"] == "length"


@pytest.mark.parametrize("path", [*V1, "/generate"])
def test_who_knows_a_way_back_keeps_the_grace_time(forever: Service, path: str) -> None:
    """With an Idempotency-Key, or by the id of /generate: the request is there when its client returns."""
    service = forever.start_over()
    body = V1.get(path, V1["/v1/completions"]) % "true"
    headers = "" if path == "/generate" else f"Idempotency-Key: {path}\r\n"
    connection = post_by_hand(service, body, headers, path=path)
    until(lambda: len(service.engine.claimed) == 1)
    connection.close()
    without_key = post_by_hand(service, V1["/v1/completions"] % "true", path="/v1/completions")
    until(lambda: len(service.engine.claimed) == 2)
    without_key.close()
    until(lambda: service.spool.state(service.engine.claimed[1].id) == "done")
    kept = service.engine.claimed[0].id
    assert service.spool.state(kept) == "active"
    service.engine.release()
    until(lambda: service.spool.state(kept) == "done")
    if headers:
        answer = service.http.post(path, json=json.loads(body), headers={"Idempotency-Key": path})
        assert "[DONE]" in answer.text or '"done":true' in answer.text
    assert service.http.get(f"/requests/{kept}").json()["finish_reason"] == "length"
    assert len(service.engine.claimed) == 2


def test_who_follows_a_request_of_v1_keeps_it(forever: Service) -> None:
    """Its own client leaves without a key, but another client follows it."""
    service = forever.start_over()
    connection = post_by_hand(service, V1["/v1/completions"] % "true", path="/v1/completions")
    until(lambda: len(service.engine.claimed) == 1)
    kept = service.engine.claimed[0].id
    with service.http.stream("GET", f"/requests/{kept}/stream") as answer:
        chunks = answer.iter_text()
        seen = next(chunks)
        connection.close()
        gone = post_by_hand(service, V1["/v1/completions"] % "true", path="/v1/completions")
        until(lambda: len(service.engine.claimed) == 2)
        gone.close()
        until(lambda: service.spool.state(service.engine.claimed[1].id) == "done")
        service.engine.release()
        assert events(seen + "".join(chunks))[-1][2]["finish_reason"] == "length"
