"""POST /v1/chat/completions, as the openai clients expect it.

frontdoor/chat_request.py makes the draft, frontdoor/chat_writer.py writes the choices. Knows nothing of how
an answer comes about.
"""

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import Response

from frontdoor.accepting import Accepted
from frontdoor.chat_request import make_answer, make_draft
from frontdoor.chat_writer import ChatWriter
from frontdoor.http.bodies import BodyRoute, json_body
from frontdoor.routes.openai_text import Asked, TextApi, answer_text
from frontdoor.schemas import ChatBody
from frontdoor.state import FrontDoor

router = APIRouter(route_class=BodyRoute)


API = TextApi(prefix="chatcmpl", kind="chat.completion", chunk_kind="chat.completion.chunk")


@router.post("/v1/chat/completions", openapi_extra=json_body("ChatBody"))
async def chat_completions(http: HttpRequest) -> Response:
    """Answer a chat."""
    return await answer_text(http, API, ChatBody, read_body)


def read_body(front: FrontDoor, body: ChatBody) -> Asked:
    """Turn the body into a draft."""
    draft = make_draft(body)

    def make_writer(index: int, accepted: Accepted) -> ChatWriter:
        return ChatWriter(index, make_answer(front, draft, accepted), front.tokenizer.detokenizer)

    return Asked([draft], body.n or 1, make_writer)
