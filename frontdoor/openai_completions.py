"""POST /v1/completions: plain text or token ids, continued without a chat template.

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
from frontdoor.schemas import CompletionBody
from frontdoor.state import caller, front_door

router = APIRouter()


@router.post("/v1/completions", openapi_extra=json_body("CompletionBody"))
async def completions(http: HttpRequest) -> Response:
    """Continue a text."""
    front = front_door(http)
    body = await read_json(http, CompletionBody, max_bytes=front.settings.max_body_bytes)
    check_stream_options(body)
    draft = Draft(prompt=body.prompt, sampling=body)
    accepted = await accept(front, draft, caller=caller(http))
    head = envelope(front, accepted, prefix="cmpl", kind="text_completion")
    if body.stream:
        return stream_answer(
            front, accepted, CompletionRenderer(head, body.stream_options, accepted.num_prompt_tokens)
        )
    result = check_not_cancelled(await wait_for_result(front, http, accepted))
    choice = completion_choice(result.text, result.finish_reason)
    return JSONResponse({**head, "choices": [choice], "usage": usage_of(result)})


def completion_choice(text: str, finish_reason: str | None) -> dict[str, Any]:
    """Write the one choice there is."""
    return {"index": 0, "text": text, "logprobs": None, "finish_reason": finish_reason}


class CompletionRenderer(ChunkRenderer):
    """Chunks with text."""

    def opening(self) -> None:
        return None

    def choice(self, text: str | None, finish_reason: str | None) -> dict[str, Any]:
        return completion_choice(text or "", finish_reason)
