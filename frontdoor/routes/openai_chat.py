"""POST /v1/chat/completions, as the openai clients expect it.

Adapts the body to a draft and says how a choice looks; knows nothing of how an answer comes about.
"""

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import Response

from frontdoor.accepting import Draft
from frontdoor.http.bodies import BodyRoute, json_body
from frontdoor.routes.openai_text import Choice, TextApi, answer_text
from frontdoor.schemas import ChatBody
from spool import Result

router = APIRouter(route_class=BodyRoute)


@router.post("/v1/chat/completions", openapi_extra=json_body("ChatBody"))
async def chat_completions(http: HttpRequest) -> Response:
    """Answer a chat."""
    return await answer_text(http, CHAT, ChatBody, draft_of)


def draft_of(body: ChatBody) -> Draft:
    """Turn the body into a draft."""
    return Draft(prompt=body.messages, prompt_field="messages", sampling=body, effort=body.reasoning_effort)


def _choice(part: dict[str, Choice], finish_reason: str | None) -> Choice:
    return {"index": 0, **part, "logprobs": None, "finish_reason": finish_reason}


def _message(result: Result) -> Choice:
    message = {"role": "assistant", "content": result.text, "refusal": None}
    return _choice({"message": message}, result.finish_reason)


def _delta(text: str | None, finish_reason: str | None) -> Choice:
    return _choice({"delta": {} if text is None else {"content": text}}, finish_reason)


CHAT = TextApi(
    prefix="chatcmpl",
    kind="chat.completion",
    chunk_kind="chat.completion.chunk",
    choice=_message,
    delta=_delta,
    opening=_choice({"delta": {"role": "assistant", "content": ""}}, None),
)
