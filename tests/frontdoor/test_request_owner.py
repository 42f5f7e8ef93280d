"""With API keys, only the key of a request finds it."""

import pytest
from msgspec.structs import replace

from frontdoor.request_lookup import FoundRequest, may_see
from spool import Result
from tests.services.frontdoor_service import Service, until

KEYS = "mine\ntheirs\n"
MINE = {"Authorization": "Bearer mine"}
THEIRS = {"Authorization": "Bearer theirs"}
ID = "a" * 32


def statuses(service: Service, request_id: str, headers: dict[str, str]) -> list[int]:
    """What GET and the stream say, in this order."""
    found = [service.http.get(f"/requests/{request_id}", headers=headers).status_code]
    with service.http.stream("GET", f"/requests/{request_id}/stream", headers=headers) as answer:
        return [*found, answer.status_code]


def test_another_keys_request_does_not_exist(service: Service) -> None:
    """Waiting, running and finished: the same 404 as for an id that never was, and no cancel."""
    service.start_over(max_open=0)
    body = {"prompt": "[hold]", "background": True}
    request_id = service.http.post("/generate", json=body, headers=MINE).json()["id"]
    url = f"/requests/{request_id}"
    unknown = service.http.get(f"/requests/{ID}", headers=THEIRS).json()
    for state in ("waiting", "active", "done"):
        assert service.http.get(url, headers=MINE).json()["state"] == state
        assert statuses(service, request_id, MINE) == [200, 200]
        assert statuses(service, request_id, THEIRS) == [404, 404]
        assert service.http.get(url, headers=THEIRS).json() == unknown
        assert service.http.delete(url, headers=THEIRS).status_code == 404
        if state == "waiting":
            service.engine.open_up(8)
            until(lambda: service.spool.state(request_id) == "active")
        elif state == "active":
            service.engine.release()
            until(lambda: service.spool.state(request_id) == "done")
    assert service.http.get(url, headers=MINE).json()["finish_reason"] == "length"
    assert service.http.delete(url, headers=MINE).json()["cancelled"] is False


def failed(owner: str) -> Result:
    return Result.failed(ID, model="", code="corrupt", message="damaged", finished_unix=0.0, owner=owner)


@pytest.mark.parametrize(
    ("found", "owner", "is_seen"),
    [
        (FoundRequest(ID, "active", "me"), "me", True),
        (FoundRequest(ID, "active", "me"), "", True),  # no keys are asked for
        (FoundRequest(ID, "active", "you"), "me", False),
        (FoundRequest(ID, "waiting", ""), "me", False),  # from a prompt file, or from before the keys
        (FoundRequest(ID, "waiting", None), "me", False),
        (FoundRequest(ID, "waiting", None), "", True),
        (FoundRequest(ID, "done", "", result=failed("")), "me", True),  # only says that it was damaged
        (FoundRequest(ID, "done", "you", result=failed("you")), "me", False),
        (
            FoundRequest(ID, "done", "", result=replace(failed(""), error=None, finish_reason="stop")),
            "me",
            False,
        ),
    ],
)
def test_who_may_see_what(found: FoundRequest, owner: str, is_seen: bool) -> None:
    """Equal owners, or no keys at all; an error without an owner contains no secret."""
    assert may_see(found, owner) is is_seen


def test_a_damaged_request_file_has_no_owner_until_it_has_ended(service: Service) -> None:
    """Its owner cannot be read: 404 with keys, no crash."""
    service.start_over(max_open=0)
    body = {"prompt": "hi", "background": True}
    request_id = service.http.post("/generate", json=body, headers=MINE).json()["id"]
    (path,) = service.spool.folder.incoming.iterdir()
    path.write_bytes(path.read_bytes()[:-10])
    assert service.http.get(f"/requests/{request_id}", headers=MINE).status_code == 404
