"""POST /v1/chat/completions, as the openai clients expect it.

Adapts the body to a draft; frontdoor/chat_writer.py writes the choices. Knows nothing of how an answer comes
about.
"""

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import Response

from frontdoor.accepting import Accepted
from frontdoor.chat_writer import ChatWriter
from frontdoor.encoding import Draft
from frontdoor.http.bodies import BodyRoute, json_body
from frontdoor.routes.openai_text import Asked, TextApi, answer_text
from frontdoor.schemas import ChatBody
from frontdoor.state import FrontDoor
from frontdoor.tools import make_tool_use

router = APIRouter(route_class=BodyRoute)


API = TextApi(prefix="chatcmpl", kind="chat.completion", chunk_kind="chat.completion.chunk")


@router.post("/v1/chat/completions", openapi_extra=json_body("ChatBody"))
async def chat_completions(http: HttpRequest) -> Response:
    """Answer a chat."""
    return await answer_text(http, API, ChatBody, read_body)


def read_body(front: FrontDoor, body: ChatBody) -> Asked:
    """Turn the body into a draft."""
    use = make_tool_use(body.tools, body.tool_choice, is_parallel=body.parallel_tool_calls)
    draft = Draft(
        prompt=body.messages,
        prompt_field="messages",
        sampling=body,
        effort=body.reasoning_effort,
        logprobs=body.num_alternatives,
        tool_use=use,
        variables=body.chat_template_kwargs,
    )
    tokenizer = front.tokenizer

    def make_writer(index: int, accepted: Accepted) -> ChatWriter:
        reader = tokenizer.formats.reader(use.tools, is_thinking=accepted.is_thinking)

        def keep(text: str) -> None:
            if accepted.prompt is not None:
                front.kept_turns.note(accepted.id, accepted.prompt, text)

        return ChatWriter(index, accepted.id, reader, tokenizer.detokenizer, keep)

    return Asked([draft], body.n or 1, make_writer)
