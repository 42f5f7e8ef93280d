"""POST /v1/responses, OpenAI's Responses API without a store.

frontdoor/dialects/ has the body and the renderer. The routes of stored responses say that there are none.
"""

from functools import partial
from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import Response

from frontdoor.chat_request import earlier_answer
from frontdoor.dialects.dialect import Asked
from frontdoor.dialects.responses_bodies import ResponsesBody, rename_fields
from frontdoor.dialects.responses_items import items_of
from frontdoor.dialects.responses_renderer import ResponsesRenderer
from frontdoor.http.bodies import BodyRoute, json_body
from frontdoor.http.errors import InvalidRequest, NotFound
from frontdoor.routes.dialect import answer_in_dialect
from frontdoor.state import FrontDoor, front_door, owner_of

router = APIRouter(route_class=BodyRoute)


@router.post("/v1/responses", openapi_extra=json_body("ResponsesBody"))
async def responses(http: HttpRequest) -> Response:
    """Answer with the items of a response."""
    front, owner = front_door(http), owner_of(http)

    def complete(body: ResponsesBody) -> ResponsesBody:
        def find(request_id: str) -> dict[str, Any]:
            found = earlier_answer(front, request_id, owner, body.functions)
            return {} if found is None else items_of(*found, body.custom_tools)

        return body.with_items(find)

    try:
        return await answer_in_dialect(http, ResponsesBody, partial(make_renderer, front), complete)
    except InvalidRequest as error:
        rename_fields(error)
        raise


def make_renderer(front: FrontDoor, body: ResponsesBody, asked: Asked) -> ResponsesRenderer:
    """Make the renderer of a body's answer."""
    front.hints.note_skipped(body.skipped_tools)
    return ResponsesRenderer(body, asked, front.tokenizer)


@router.get("/v1/responses/{rest:path}")
@router.post("/v1/responses/{rest:path}")
@router.delete("/v1/responses/{rest:path}")
async def stored_responses(http: HttpRequest) -> Response:
    """Refuse what needs a store."""
    raise NotFound(
        "this server stores no responses: send the whole conversation to POST /v1/responses; "
        "GET /requests/{id} shows an accepted request for a while"
    )
