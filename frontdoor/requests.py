"""GET and DELETE /requests/{id}: fetch or cancel a request that was accepted earlier, by any front door.

Ids are checked by pattern before anything else sees them; an id as the OpenAI routes write it is understood
as well.
"""

import re
from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest

from frontdoor.errors import FrontDoorError, NotFound, Overloaded
from frontdoor.generate import answer
from frontdoor.state import FrontDoor, front_door
from spool import CorruptRequest, Result, SpoolUnavailable

_ID = re.compile(r"(?:chatcmpl-|cmpl-)?([0-9a-f]{32})")

router = APIRouter(prefix="/requests/{request_id}")


@router.get("")
async def get_request(http: HttpRequest, request_id: str) -> dict[str, Any]:
    """Return the result, or the state of a request that has none yet."""
    front = front_door(http)
    found = _checked_id(request_id)
    front.leavers.came_back(found)
    return _describe(front, found)


@router.delete("")
async def cancel_request(http: HttpRequest, request_id: str) -> dict[str, Any]:
    """Cancel a request; one that is done stays as it is."""
    front = front_door(http)
    found = _checked_id(request_id)
    front.leavers.came_back(found)
    try:
        is_cancelled = front.spool.cancel(found)
    except SpoolUnavailable as error:
        raise Overloaded(f"the request cannot be cancelled now: {error}") from error
    return {"cancelled": is_cancelled, **_describe(front, found)}


def _checked_id(text: str) -> str:
    match = _ID.fullmatch(text)
    if match is None:
        raise _unknown()
    return match[1]


def _describe(front: FrontDoor, request_id: str) -> dict[str, Any]:
    try:
        state = front.spool.state(request_id)
        result = front.spool.read_result(request_id) if state == "done" else None
        position = front.spool.position(request_id) if state == "waiting" else None
    except SpoolUnavailable as error:
        raise Overloaded(f"the request cannot be looked up now: {error}") from error
    except CorruptRequest as error:
        raise FrontDoorError("the result of this request is damaged") from error
    if state is None:
        raise _unknown()
    if result is not None:
        return _finished(result)
    described: dict[str, Any] = {"id": request_id, "state": state}
    if position is not None:
        described["position"] = position
    return described


def _finished(result: Result) -> dict[str, Any]:
    described = {"state": "done", **answer(result)}
    if result.error is not None:
        described["error"] = result.error
    return described


def _unknown() -> NotFound:
    return NotFound("no such request, or its result is older than RESULT_RETENTION_HOURS")
