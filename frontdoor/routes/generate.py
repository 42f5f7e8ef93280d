"""POST /generate, this service's own API: one JSON answer, or server-sent events `token`, `done`, `error`.

Converts the body to a draft and the result to the answer; knows nothing of the spool's files.
"""

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response

from config import Settings
from config.errors import ServiceError
from frontdoor.accepting import Accepted, accept
from frontdoor.answering import Renderer, stream_answer, wait_for_results
from frontdoor.encoding import Draft, in_worker
from frontdoor.http.bodies import BodyRoute, json_body, read_json
from frontdoor.http.errors import InvalidRequest, body_of
from frontdoor.http.events import FIRST_COMMENT_SECONDS, comment_frame, data_frame, to_json
from frontdoor.logprobs import chat_logprobs, has_logprobs
from frontdoor.schemas import GenerateBody
from frontdoor.state import FrontDoor, caller, front_door
from prompts.detokenizer import Detokenizer
from spool import Result, SpoolUnavailable, TokenRecord

DEFAULT_PRIORITY = 5

router = APIRouter(route_class=BodyRoute)


@router.post("/generate", openapi_extra=json_body("GenerateBody"))
async def generate(http: HttpRequest) -> Response:
    """Generate text."""
    front = front_door(http)
    body = await read_json(http, GenerateBody, max_bytes=front.settings.max_body_bytes)
    draft, texts = draft_of(body, front.settings), front.tokenizer.detokenizer
    accepted = await accept(front, [draft], caller=caller(http), num_choices=body.n or 1)
    if body.background:
        for each in accepted:
            if not each.is_first:
                front.disconnects.client_returned(each.id)  # a retry that does not wait any more
        return accepted_response(front, accepted)
    if body.stream:
        return stream_answer(
            front, accepted, NativeRenderer(texts, accepted[0].id, num_choices=len(accepted))
        )
    results = await wait_for_results(front, http, accepted)

    def write() -> JSONResponse:
        return JSONResponse(whole_answer(results, texts))

    return await in_worker(front, write) if has_logprobs(results) else write()


def draft_of(body: GenerateBody, settings: Settings) -> Draft:
    """Turn the body into a draft; a prompt gets the chat template unless it is raw.

    Raises:
        InvalidRequest: fields that exclude each other.
    """
    if (body.prompt is None) == (body.messages is None):
        raise InvalidRequest("exactly one of 'prompt' and 'messages' is required", param="prompt")
    if body.messages is not None and body.raw:
        raise InvalidRequest("'raw' is for prompts: messages always get the chat template", param="raw")
    if body.background and body.stream:
        raise InvalidRequest("'background' and 'stream' exclude each other", param="background")
    return Draft(
        prompt=body.prompt if body.prompt is not None else body.messages or (),
        prompt_field="prompt" if body.prompt is not None else "messages",
        sampling=body,
        is_raw=bool(body.raw),
        priority=DEFAULT_PRIORITY if body.priority is None else body.priority,
        default_max_tokens=settings.default_max_tokens,
        has_model_sampling=False,
        max_text_bytes=settings.max_prompt_len_bytes,
        logprobs=body.num_alternatives,
    )


def accepted_response(front: FrontDoor, accepted: Sequence[Accepted]) -> JSONResponse:
    """Answer a background request with its URL and its place in the queue; with several, also by choice."""
    places = [
        {"id": each.id, "status_url": f"/requests/{each.id}", **describe_place(front, each.id)}
        for each in accepted
    ]
    body = places[0] if len(places) == 1 else {**places[0], "choices": places}
    return JSONResponse(body, status_code=202, headers={"Location": places[0]["status_url"]})


def describe_place(front: FrontDoor, request_id: str) -> dict[str, Any]:
    """Return the position and the estimated wait; both null once the request does not wait any more."""
    try:
        place = front.queue_estimate.place(request_id, is_exact=True)
    except SpoolUnavailable:  # the request is accepted nevertheless
        place = None
    return {"position": None, "estimated_wait_s": None} if place is None else dict(vars(place))


def whole_answer(results: Sequence[Result], texts: Detokenizer) -> dict[str, Any]:
    """Write the results of one body."""
    answers = [answer(result, texts) for result in results]
    return answers[0] if len(answers) == 1 else {**answers[0], "choices": answers}


def answer(result: Result, texts: Detokenizer) -> dict[str, Any]:
    """Write a result as /generate answers it."""
    usage = result.usage
    answered: dict[str, Any] = {
        "id": result.id,
        "text": result.text,
        "finish_reason": result.finish_reason,
        "model": result.model,
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
            "cached_tokens": usage.cached_tokens,
        },
        "performance": result.performance,
    }
    if result.seed is not None:
        answered["seed"] = result.seed
    if result.logprobs is not None:
        answered["logprobs"] = chat_logprobs(texts, result.logprobs)["content"]
    return answered


class NativeRenderer(Renderer):
    """Writes events as `token`, `reset`, `done` and `error`.

    The id of a token event is the token's index. With several choices events have no id, but their choice.
    """

    ends_at_reset = False
    patience_seconds = FIRST_COMMENT_SECONDS

    def __init__(self, texts: Detokenizer, first_id: str, *, num_choices: int = 1) -> None:
        self._texts, self._first_id, self._is_alone = texts, first_id, num_choices == 1

    def opening(self) -> bytes:
        return comment_frame(f"accepted {self._first_id}")

    def tokens(self, choice: int, records: tuple[TokenRecord, ...]) -> bytes:
        return b"".join(self._token(choice, record) for record in records)

    def reset(self, choice: int) -> bytes:
        return self._frame("reset", choice, {})

    def done(self, choice: int, result: Result) -> bytes:
        return self._frame("done", choice, answer(result, self._texts))

    def error(self, error: ServiceError) -> bytes:
        return data_frame(to_json(body_of(error)), event="error")

    def _token(self, choice: int, record: TokenRecord) -> bytes:
        token: dict[str, Any] = {"index": record.index, "token_id": record.token_id, "text": record.text}
        if record.logprobs is not None:
            token["logprobs"] = chat_logprobs(self._texts, [record.logprobs])["content"]
        return self._frame("token", choice, token, record.index if self._is_alone else None)

    def _frame(self, event: str, choice: int, data: dict[str, Any], event_id: int | None = None) -> bytes:
        named = data if self._is_alone else {"choice": choice, **data}
        return data_frame(to_json(named), event=event, event_id=event_id)
