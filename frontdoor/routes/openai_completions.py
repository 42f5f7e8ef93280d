"""POST /v1/completions: continues plain text or token ids without a chat template.

Converts the body to a draft, and defines the form of a choice; knows nothing of the ring or the spool.
"""

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import Response

from frontdoor.accepting import Draft
from frontdoor.http.bodies import BodyRoute, json_body
from frontdoor.routes.openai_text import Choice, TextApi, answer_text
from frontdoor.schemas import CompletionBody

router = APIRouter(route_class=BodyRoute)


@router.post("/v1/completions", openapi_extra=json_body("CompletionBody"))
async def completions(http: HttpRequest) -> Response:
    """Continue a text."""
    return await answer_text(
        http, COMPLETION, CompletionBody, lambda body: Draft(prompt=body.prompt, sampling=body)
    )


def _choice(text: str | None, finish_reason: str | None) -> Choice:
    return {"index": 0, "text": text or "", "logprobs": None, "finish_reason": finish_reason}


COMPLETION = TextApi(
    prefix="cmpl",
    kind="text_completion",
    chunk_kind="text_completion",
    choice=lambda result: _choice(result.text, result.finish_reason),
    delta=_choice,
)
