"""POST /v1/chat/completions, as the openai clients expect it.

Adapts the body to a draft and the result to a completion or chunks; knows nothing of how either travels.
"""

from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response

from frontdoor.accepting import Draft, accept
from frontdoor.answering import stream_answer, wait_for_result
from frontdoor.bodies import json_body, read_json
from frontdoor.openai_text import (
    ChunkRenderer,
    check_not_cancelled,
    check_stream_options,
    envelope,
    usage_of,
)
from frontdoor.schemas import ChatBody
from frontdoor.state import caller, front_door

router = APIRouter()


@router.post("/v1/chat/completions", openapi_extra=json_body("ChatBody"))
async def chat_completions(http: HttpRequest) -> Response:
    """Answer a chat."""
    front = front_door(http)
    body = await read_json(http, ChatBody, max_bytes=front.settings.max_body_bytes)
    check_stream_options(body)
    accepted = await accept(front, draft_of(body), caller=caller(http))
    if body.stream:
        head = envelope(front, accepted, prefix="chatcmpl", kind="chat.completion.chunk")
        return stream_answer(
            front, accepted, ChatRenderer(head, body.stream_options, accepted.num_prompt_tokens)
        )
    result = check_not_cancelled(await wait_for_result(front, http, accepted))
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": result.text, "refusal": None},
        "logprobs": None,
        "finish_reason": result.finish_reason,
    }
    head = envelope(front, accepted, prefix="chatcmpl", kind="chat.completion")
    return JSONResponse({**head, "choices": [choice], "usage": usage_of(result)})


def draft_of(body: ChatBody) -> Draft:
    """Turn the body into a draft."""
    return Draft(prompt=body.messages, prompt_field="messages", sampling=body, effort=body.reasoning_effort)


class ChatRenderer(ChunkRenderer):
    """Chunks with deltas."""

    def opening(self) -> dict[str, Any]:
        return {
            "index": 0,
            "delta": {"role": "assistant", "content": ""},
            "logprobs": None,
            "finish_reason": None,
        }

    def choice(self, text: str | None, finish_reason: str | None) -> dict[str, Any]:
        delta = {} if text is None else {"content": text}
        return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
