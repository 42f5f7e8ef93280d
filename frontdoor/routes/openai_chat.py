"""POST /v1/chat/completions, as the openai clients expect it.

Adapts the body to a draft and says how a choice looks; knows nothing of how an answer comes about.
"""

from collections.abc import Sequence

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import Response

from frontdoor.accepting import Draft
from frontdoor.http.bodies import BodyRoute, json_body
from frontdoor.logprobs import chat_logprobs
from frontdoor.routes.openai_text import Asked, Choice, TextApi, answer_text
from frontdoor.schemas import ChatBody
from frontdoor.state import FrontDoor
from prompts.detokenizer import Detokenizer
from spool import Result, TokenLogprob, TokenRecord

router = APIRouter(route_class=BodyRoute)


API = TextApi(prefix="chatcmpl", kind="chat.completion", chunk_kind="chat.completion.chunk")


@router.post("/v1/chat/completions", openapi_extra=json_body("ChatBody"))
async def chat_completions(http: HttpRequest) -> Response:
    """Answer a chat."""
    return await answer_text(http, API, ChatBody, read_body)


def read_body(front: FrontDoor, body: ChatBody) -> Asked:
    """Turn the body into a draft."""
    draft = Draft(
        prompt=body.messages,
        prompt_field="messages",
        sampling=body,
        effort=body.reasoning_effort,
        logprobs=body.num_alternatives,
    )
    return Asked([draft], body.n or 1, lambda index: ChatWriter(index, front.tokenizer.detokenizer))


class ChatWriter:
    """Writes a choice of a chat: a message, or deltas."""

    def __init__(self, index: int, texts: Detokenizer) -> None:
        self._index, self._texts = index, texts

    def opening(self) -> list[Choice]:
        return [self._choice({"delta": {"role": "assistant", "content": ""}})]

    def tokens(self, records: tuple[TokenRecord, ...]) -> list[Choice]:
        text = "".join(record.text for record in records)
        logprobs = self._logprobs([record.logprobs for record in records if record.logprobs is not None])
        return [self._choice({"delta": {"content": text}}, logprobs)] if text or logprobs else []

    def done(self, result: Result) -> list[Choice]:
        return [self._choice({"delta": {}}, finish_reason=result.finish_reason)]

    def whole(self, result: Result) -> Choice:
        message = {"role": "assistant", "content": result.text, "refusal": None}
        return self._choice({"message": message}, self._logprobs(result.logprobs), result.finish_reason)

    def _logprobs(self, tokens: Sequence[TokenLogprob] | None) -> Choice | None:
        return chat_logprobs(self._texts, tokens) if tokens else None

    def _choice(
        self, part: Choice, logprobs: Choice | None = None, finish_reason: str | None = None
    ) -> Choice:
        return {"index": self._index, **part, "logprobs": logprobs, "finish_reason": finish_reason}
