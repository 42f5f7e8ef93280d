"""POST /tokenize and /detokenize, with the bodies of vLLM's: text or a chat to token ids, and back.

Counts as the other routes do: a chat gets the chat template, a prompt the tokens that open it. Neither
touches the spool or the ring.
"""

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse

from frontdoor.encoding import Draft, check_token_range, encode_prompt, in_worker
from frontdoor.http.bodies import BodyRoute, json_body, read_json
from frontdoor.http.errors import InvalidRequest
from frontdoor.schemas import DetokenizeBody, SamplingFields, TokenizeBody
from frontdoor.served_model import check_model
from frontdoor.state import FrontDoor, front_door
from frontdoor.tools import ToolUse

router = APIRouter(route_class=BodyRoute)


@router.post("/tokenize", openapi_extra=json_body("TokenizeBody"))
async def tokenize(http: HttpRequest) -> JSONResponse:
    """Return the token ids of a prompt or a chat."""
    front = front_door(http)
    body = await read_json(http, TokenizeBody, max_bytes=front.settings.max_body_bytes)
    check_model(front, body.model)
    if (body.prompt is None) == (body.messages is None):
        raise InvalidRequest("exactly one of 'prompt' and 'messages' is required", param="prompt")
    if body.prompt is not None:
        _check_unused(body, "prompt", "tools", "chat_template_kwargs")
        opens = body.add_special_tokens is not False
        encode = front.tokenizer.encode_raw if opens else front.tokenizer.encode_rendered
        token_ids: Sequence[int] = await in_worker(front, encode, body.prompt)
    else:
        _check_unused(body, "messages", "add_special_tokens")
        draft = Draft(
            body.messages or (),
            SamplingFields(),
            prompt_field="messages",
            tool_use=ToolUse(body.tools or ()),
            variables=body.chat_template_kwargs,
        )
        token_ids = (await encode_prompt(front, draft)).token_ids
    return await in_worker(front, _answer, front, token_ids, body.return_token_strs)


def _check_unused(body: TokenizeBody, given: str, *names: str) -> None:
    for name in names:
        if getattr(body, name):
            raise InvalidRequest(f"{name!r} and {given!r} exclude each other", param=name)


def _answer(front: FrontDoor, token_ids: Sequence[int], with_texts: bool | None) -> JSONResponse:
    answered: dict[str, Any] = {
        "count": len(token_ids),
        "max_model_len": front.context.max_tokens,
        "tokens": list(token_ids),
    }
    if with_texts:
        texts = front.tokenizer.detokenizer
        answered["token_strs"] = [texts.bytes_alone(token).decode("utf-8", "replace") for token in token_ids]
    return JSONResponse(answered)


@router.post("/detokenize", openapi_extra=json_body("DetokenizeBody"))
async def detokenize(http: HttpRequest) -> JSONResponse:
    """Return the text of token ids, with the names of special tokens."""
    front = front_door(http)
    body = await read_json(http, DetokenizeBody, max_bytes=front.settings.max_body_bytes)
    check_model(front, body.model)
    check_token_range(body.tokens, front.tokenizer.vocab_size, "tokens")
    text = await in_worker(front, front.tokenizer.detokenizer.text_of, body.tokens)
    return JSONResponse({"prompt": text})
