"""/v1/batches: begins, lists, shows and cancels batches, as the openai clients expect it.

The runner of one front door runs them (frontdoor/batches/); these routes only read and write what is on the
disk. With API keys, only the key of a batch finds it.
"""

import re
import time
from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest

from config.errors import ServiceError
from frontdoor.batches.endpoints import ENDPOINTS
from frontdoor.encoding import in_worker
from frontdoor.http.bodies import json_body, read_json
from frontdoor.http.errors import InvalidRequest, NotFound
from frontdoor.http.paging import make_page
from frontdoor.routes.files import check_life, find_file
from frontdoor.schemas import BatchBody
from frontdoor.state import FrontDoor, caller, front_door, owner_of
from spool import IdempotencyConflict
from spool.batches import Batch, BatchState, BatchView, make_batch_id

MAX_UNFINISHED = 100
MAX_WINDOW_HOURS = 8760
_WINDOW = re.compile(r"([1-9][0-9]{0,4})h")

router = APIRouter(prefix="/v1/batches")


class BatchConflict(InvalidRequest):
    """The batch has ended."""

    status, code = 409, "batch_ended"


class TooManyBatches(ServiceError):
    status, code = 429, "rate_limit_exceeded"
    retry_seconds = 60


@router.post("", openapi_extra=json_body("BatchBody"))
async def begin_batch(http: HttpRequest) -> dict[str, Any]:
    """Begin a batch."""
    front, asker = front_door(http), caller(http)
    body = await read_json(http, BatchBody, max_bytes=front.settings.max_body_bytes)
    batch = _make_batch(front, body, asker.owner, asker.idempotency_key)
    return describe(await in_worker(front, _begin, front, batch))


@router.get("")
async def list_batches(http: HttpRequest) -> dict[str, Any]:
    """List the batches, the newest first."""
    front, owner = front_door(http), owner_of(http)
    found = await in_worker(front, front.batches.list_all)
    return make_page(
        http, [describe(view) for view in found if owner in ("", view.batch.owner)], default=20, most=100
    )


@router.get("/{batch_id}")
async def get_batch(http: HttpRequest, batch_id: str) -> dict[str, Any]:
    """Show a batch."""
    return describe(_find(front_door(http), batch_id, owner_of(http)))


@router.post("/{batch_id}/cancel")
async def cancel_batch(http: HttpRequest, batch_id: str) -> dict[str, Any]:
    """Cancel a batch: lines that have an answer keep it."""
    front, owner = front_door(http), owner_of(http)
    view = _find(front, batch_id, owner)
    if view.state.has_ended:
        raise BatchConflict(f"the batch is {view.status}: it cannot be cancelled any more")
    await in_worker(front, front.batches.cancel, view.batch.id)
    return describe(_find(front, batch_id, owner))


def describe(view: BatchView) -> dict[str, Any]:
    """Write a batch as OpenAI does."""
    batch, state, status = view.batch, view.state, view.status
    ended_at = {name: state.ended_unix if state.status == name else None for name in _ENDS}
    times = {
        "created_at": batch.created_unix,
        "in_progress_at": state.in_progress_unix,
        "expires_at": batch.expires_unix,
        "finalizing_at": state.finalizing_unix,
        "completed_at": ended_at["completed"],
        "failed_at": ended_at["failed"],
        "expired_at": ended_at["expired"],
        "cancelling_at": view.cancelling_unix if status in ("cancelling", "cancelled") else None,
        "cancelled_at": ended_at["cancelled"],
    }
    errors = [
        {"code": error.code, "line": error.line, "message": error.message, "param": error.param}
        for error in state.errors
    ]
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "errors": {"object": "list", "data": errors} if errors else None,
        "input_file_id": batch.input_file_id,
        "completion_window": batch.completion_window,
        "status": status,
        "output_file_id": state.output_file_id,
        "error_file_id": state.error_file_id,
        **{name: None if moment is None else int(moment) for name, moment in times.items()},
        "request_counts": {
            "total": state.num_total,
            "completed": state.num_completed,
            "failed": state.num_failed,
        },
        "metadata": batch.metadata,
    }


_ENDS = ("completed", "failed", "expired", "cancelled")


def _find(front: FrontDoor, id: str, owner: str) -> BatchView:
    view = front.batches.find(id)
    if view is None or owner not in ("", view.batch.owner):
        raise NotFound("there is no such batch, or it was removed (FILE_RETENTION_DAYS)")
    return view


def _make_batch(front: FrontDoor, body: BatchBody, owner: str, key: str | None) -> Batch:
    """Check what a body asks for. Raises InvalidRequest, NotFound."""
    if body.endpoint not in ENDPOINTS:
        raise InvalidRequest(f"'endpoint' must be one of {', '.join(ENDPOINTS)}", param="endpoint")
    window = _WINDOW.fullmatch(body.completion_window)
    if window is None or int(window[1]) > MAX_WINDOW_HOURS:
        raise InvalidRequest(
            f"'completion_window' must be hours from 1h to {MAX_WINDOW_HOURS}h, such as 24h",
            param="completion_window",
        )
    life = body.output_expires_after
    now = time.time()
    return Batch(
        make_batch_id(owner, key),
        body.endpoint,
        body.input_file_id,
        body.completion_window,
        now,
        now + int(window[1]) * 3600,
        owner,
        body.metadata,
        None if life is None else check_life(life.seconds, "output_expires_after.seconds"),
    )


def _begin(front: FrontDoor, batch: Batch) -> BatchView:
    """Begin the batch; under a known Idempotency-Key return the earlier one. Blocks."""
    store = front.batches
    earlier = store.find(batch.id)
    if earlier is not None:
        if _asked(earlier.batch) != _asked(batch):
            raise IdempotencyConflict("this Idempotency-Key was used for a batch with another body")
        return earlier
    find_file(front, batch.input_file_id, batch.owner, param="input_file_id")
    store.spool.check_room()
    ours = [view for view in store.list_all() if view.batch.owner == batch.owner]
    if sum(not view.state.has_ended for view in ours) >= MAX_UNFINISHED:
        raise TooManyBatches(f"{MAX_UNFINISHED} batches have not ended: wait for one, or cancel one")
    try:
        store.create(batch)
    except FileNotFoundError:
        find_file(front, batch.input_file_id, batch.owner, param="input_file_id")
        raise
    return BatchView(batch, BatchState())


def _asked(batch: Batch) -> tuple[object, ...]:
    return (
        batch.endpoint,
        batch.input_file_id,
        batch.completion_window,
        batch.metadata,
        batch.output_lives_seconds,
    )
