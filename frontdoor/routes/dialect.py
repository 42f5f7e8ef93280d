"""The shared part of the routes of other vendors' APIs: from a body to an answer, whole or streamed."""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response

from frontdoor.accepting import accept
from frontdoor.answering import stream_answer, wait_for_results
from frontdoor.chat_request import make_answer
from frontdoor.dialects.dialect import Asked, DialectBody, DialectRenderer
from frontdoor.encoding import Draft, in_worker
from frontdoor.http.bodies import read_json
from frontdoor.http.errors import Cancelled
from frontdoor.state import caller, front_door

DialectModel = TypeVar("DialectModel", bound=DialectBody)


async def answer_in_dialect(
    http: HttpRequest,
    model: type[DialectModel],
    make_renderer: Callable[[DialectModel, Asked], DialectRenderer],
    complete: Callable[[DialectModel], DialectModel] | None = None,
) -> Response:
    """Read the body, accept its request, and answer.

    Args:
        complete: replaces what a body refers to; it may take long.

    Raises:
        ServiceError: the handler writes it in the form of the path's API (frontdoor/http/dialects.py).
    """
    front = front_door(http)
    body = await read_json(http, model, max_bytes=front.settings.max_body_bytes)
    if complete is not None:
        body = await in_worker(front, complete, body)
    draft = await in_worker(front, body.draft)
    return await answer_draft(http, draft, partial(make_renderer, body), is_streamed=body.is_streamed)


async def answer_draft(
    http: HttpRequest, draft: Draft, make_renderer: Callable[[Asked], DialectRenderer], *, is_streamed: bool
) -> Response:
    """Accept the draft's request, and answer.

    Raises:
        ServiceError: as above.
    """
    front = front_door(http)
    accepted = (await accept(front, [draft], caller=caller(http)))[0]
    asked = Asked(accepted, make_answer(front, draft, accepted), front.model_name)
    renderer = make_renderer(asked)
    if is_streamed:
        return stream_answer(front, [accepted], renderer)
    result = (await wait_for_results(front, http, [accepted]))[0]
    if result.finish_reason == "cancelled":
        raise Cancelled("the request was cancelled")
    return JSONResponse(renderer.whole(result))
