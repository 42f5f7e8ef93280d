"""POST /generate, this service's own API: one JSON answer, or server-sent events `token`, `done`, `error`.

Converts the body to a draft and the result to the answer; knows nothing of the spool's files.
"""

from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response

from config import Settings
from config.errors import ServiceError
from frontdoor.accepting import Accepted, Draft, accept
from frontdoor.answering import stream_answer, wait_for_result
from frontdoor.http.bodies import BodyRoute, json_body, read_json
from frontdoor.http.errors import InvalidRequest, body_of
from frontdoor.http.events import data_frame, to_json
from frontdoor.schemas import GenerateBody
from frontdoor.state import FrontDoor, caller, front_door
from spool import Result, SpoolUnavailable, TokenRecord

DEFAULT_PRIORITY = 5

router = APIRouter(route_class=BodyRoute)


@router.post("/generate", openapi_extra=json_body("GenerateBody"))
async def generate(http: HttpRequest) -> Response:
    """Generate text."""
    front = front_door(http)
    body = await read_json(http, GenerateBody, max_bytes=front.settings.max_body_bytes)
    accepted = await accept(front, draft_of(body, front.settings), caller=caller(http))
    if body.background:
        if not accepted.is_first:
            front.disconnects.client_returned(accepted.id)  # a retry that does not wait any more
        return accepted_response(front, accepted)
    if body.stream:
        return stream_answer(front, accepted, NativeRenderer(accepted.seed))
    result = await wait_for_result(front, http, accepted)
    return JSONResponse(answer(result, seed=accepted.seed))


def draft_of(body: GenerateBody, settings: Settings) -> Draft:
    """Turn the body into a draft; a prompt gets the chat template unless it is raw.

    Raises:
        InvalidRequest: fields that exclude each other.
    """
    if (body.prompt is None) == (body.messages is None):
        raise InvalidRequest("exactly one of 'prompt' and 'messages' is required", param="prompt")
    if body.messages is not None and body.raw:
        raise InvalidRequest("'raw' is for prompts: messages always get the chat template", param="raw")
    if body.background and body.stream:
        raise InvalidRequest("'background' and 'stream' exclude each other", param="background")
    return Draft(
        prompt=body.prompt if body.prompt is not None else body.messages or (),
        prompt_field="prompt" if body.prompt is not None else "messages",
        sampling=body,
        is_raw=bool(body.raw),
        priority=DEFAULT_PRIORITY if body.priority is None else body.priority,
        default_max_tokens=settings.default_max_tokens,
        max_text_bytes=settings.max_prompt_len_bytes,
    )


def accepted_response(front: FrontDoor, accepted: Accepted) -> JSONResponse:
    """Answer a background request with its URL and its place in the queue."""
    url = f"/requests/{accepted.id}"
    body: dict[str, Any] = {"id": accepted.id, "status_url": url, **describe_place(front, accepted.id)}
    return JSONResponse(body, status_code=202, headers={"Location": url})


def describe_place(front: FrontDoor, request_id: str) -> dict[str, Any]:
    """Return the position and the estimated wait; both null once the request does not wait any more."""
    try:
        place = front.queue_estimate.place(request_id, is_exact=True)
    except SpoolUnavailable:  # the request is accepted nevertheless
        place = None
    return {"position": None, "estimated_wait_s": None} if place is None else dict(vars(place))


def answer(result: Result, *, seed: int | None = None) -> dict[str, Any]:
    """Write a result as /generate answers it."""
    usage = result.usage
    answered: dict[str, Any] = {
        "id": result.id,
        "text": result.text,
        "finish_reason": result.finish_reason,
        "model": result.model,
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
            "cached_tokens": usage.cached_tokens,
        },
        "performance": result.performance,
    }
    seed = result.seed if seed is None else seed
    if seed is not None:
        answered["seed"] = seed
    return answered


class NativeRenderer:
    """Writes events as `token`, `reset`, `done` and `error`; the id of a token event is the token's index."""

    ends_at_reset = False
    is_quiet = False

    def __init__(self, seed: int | None) -> None:
        self._seed = seed

    def tokens(self, records: tuple[TokenRecord, ...]) -> bytes:
        return b"".join(
            data_frame(
                to_json({"index": record.index, "token_id": record.token_id, "text": record.text}),
                event="token",
                event_id=record.index,
            )
            for record in records
        )

    def reset(self) -> bytes:
        return data_frame("{}", event="reset")

    def done(self, result: Result) -> bytes:
        return data_frame(to_json(answer(result, seed=self._seed)), event="done")

    def error(self, error: ServiceError) -> bytes:
        return data_frame(to_json(body_of(error)), event="error")
