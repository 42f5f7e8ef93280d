"""The shared part of the routes of other vendors' APIs: from a body to an answer, whole or streamed."""

from collections.abc import Callable
from typing import TypeVar

from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response

from frontdoor.accepting import accept
from frontdoor.answering import stream_answer, wait_for_results
from frontdoor.chat_request import make_answer
from frontdoor.dialects.dialect import Asked, DialectBody, DialectRenderer
from frontdoor.encoding import in_worker
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
    accepted = (await accept(front, [draft], caller=caller(http)))[0]
    asked = Asked(accepted, make_answer(front, draft, accepted), front.model_name)
    renderer = make_renderer(body, asked)
    if body.is_streamed:
        return stream_answer(front, [accepted], renderer)
    result = (await wait_for_results(front, http, [accepted]))[0]
    if result.finish_reason == "cancelled":
        raise Cancelled("the request was cancelled")
    return JSONResponse(renderer.whole(result))
