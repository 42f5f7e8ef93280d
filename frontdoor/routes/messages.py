"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's Messages API.

The headers `anthropic-version` and `anthropic-beta` choose nothing here. frontdoor/dialects/ has the bodies
and the form of the answer.
"""

from dataclasses import replace
from functools import partial

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response

from frontdoor.dialects.anthropic_bodies import CountTokensBody, MessagesBody
from frontdoor.dialects.anthropic_renderer import MessagesRenderer, find_stop
from frontdoor.dialects.dialect import Asked
from frontdoor.encoding import encode_prompt, in_worker
from frontdoor.http.bodies import BodyRoute, json_body, read_json
from frontdoor.routes.dialect import answer_in_dialect
from frontdoor.served_model import check_model
from frontdoor.state import front_door, owner_of

router = APIRouter(prefix="/v1/messages", route_class=BodyRoute)


@router.post("", openapi_extra=json_body("MessagesBody"))
async def messages(http: HttpRequest) -> Response:
    """Answer with the next message."""
    front = front_door(http)

    def make_renderer(body: MessagesBody, asked: Asked) -> MessagesRenderer:
        front.hints.note_names(body.hints)
        front.hints.note_skipped(body.skipped_tools)
        find = partial(find_stop, front.tokenizer, body.stop_sequences or ())
        return MessagesRenderer(replace(asked, model=body.model), find)

    return await answer_in_dialect(http, MessagesBody, make_renderer)


@router.post("/count_tokens", openapi_extra=json_body("CountTokensBody"))
async def count_tokens(http: HttpRequest) -> JSONResponse:
    """Count the tokens of a prompt."""
    front = front_door(http)
    body = await read_json(http, CountTokensBody, max_bytes=front.settings.max_body_bytes)
    check_model(front, body.model)
    draft = await in_worker(front, body.draft)
    prompt = await encode_prompt(front, draft, owner_of(http))
    return JSONResponse({"input_tokens": len(prompt.token_ids)})
