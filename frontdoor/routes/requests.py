"""GET and DELETE /requests/{id} and GET /requests/{id}/stream: fetch, cancel or follow an accepted request.

Any front door may have accepted it. Ids are checked by pattern first; ids in the form of the OpenAI routes
work as well. With API keys, only the key of the request finds it.
"""

import logging
import re
from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest

from frontdoor.accepting import Accepted, other_ids
from frontdoor.answering import stream_answer
from frontdoor.http.errors import InvalidRequest
from frontdoor.http.events import EventStream
from frontdoor.http.scope import notes
from frontdoor.request_lookup import FoundRequest, find_owned
from frontdoor.routes.generate import NativeRenderer, answer, describe_place
from frontdoor.state import FrontDoor, front_door, owner_of

_INDEX = re.compile(r"[0-9]{1,9}")

log = logging.getLogger(__name__)

router = APIRouter(prefix="/requests/{request_id}")


@router.get("")
async def get_request(http: HttpRequest, request_id: str) -> dict[str, Any]:
    """Return the result, or the state of a request that has none yet."""
    front = front_door(http)
    found = find_owned(front.spool, request_id, owner=owner_of(http))
    front.disconnects.client_returned(found.id)
    return _describe(front, found)


@router.delete("")
async def cancel_request(http: HttpRequest, request_id: str) -> dict[str, Any]:
    """Cancel a request; a done one is unchanged. An id in OpenAI's form means all choices of the answer."""
    front = front_door(http)
    found = find_owned(front.spool, request_id, owner=owner_of(http))
    front.disconnects.client_returned(found.id)
    is_cancelled = front.spool.cancel(found.id)
    if request_id != found.id:
        for other_id in other_ids(front, found.id):
            front.spool.cancel(other_id)
    after = find_owned(front.spool, found.id, owner=owner_of(http))
    if found.result is None and after.result is not None:  # rank 0 ended it before the second look-up
        is_cancelled = after.result.finish_reason == "cancelled"
    if is_cancelled:
        log.info(
            "its owner cancelled request %s (X-Request-Id %s)",
            found.id,
            notes(http.scope)["request_id"],
        )
    return {"cancelled": is_cancelled, **_describe(front, after)}


@router.get("/stream")
async def stream_request(http: HttpRequest, request_id: str) -> EventStream:
    """Follow a request from a token: after Last-Event-ID, or from ?from=N, or from 0."""
    front = front_door(http)
    start = first_index(http.headers.get("last-event-id"), http.query_params.get("from"))
    found = find_owned(front.spool, request_id, owner=owner_of(http))
    accepted = Accepted(found.id, found.seed, found.created_unix, is_asker=False, is_first=False)
    return stream_answer(
        front, [accepted], NativeRenderer(front.tokenizer.detokenizer, accepted.id), start=start
    )


def first_index(last_event_id: str | None, from_index: str | None) -> int:
    """Return the index of the first token to send. The header wins: a browser reconnects with the same URL.

    Raises:
        InvalidRequest: not an index.
    """
    if last_event_id:
        return _index(last_event_id, "Last-Event-ID") + 1
    return 0 if from_index is None else _index(from_index, "from")


def _index(text: str, name: str) -> int:
    if _INDEX.fullmatch(text) is None:
        raise InvalidRequest(f"{name} must be the index of a token", param=name)
    return int(text)


def _describe(front: FrontDoor, found: FoundRequest) -> dict[str, Any]:
    if found.result is None:
        place = describe_place(front, found.id) if found.state == "waiting" else {}
        return {"id": found.id, "state": found.state, **place}
    described = {"state": "done", **answer(found.result, front.tokenizer.detokenizer)}
    if found.result.error is not None:
        described["error"] = found.result.error
    return described
