"""POST /tokenize and /detokenize, with the bodies of vLLM's: text or a chat to token ids, and back.

Counts as the other routes do: a chat gets the chat template, a prompt the tokens that open it. Neither
touches the spool or the ring.
"""

from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse

from frontdoor.accepting import Draft, check_model, encode_prompt
from frontdoor.http.bodies import BodyRoute, json_body, read_json
from frontdoor.http.errors import InvalidRequest
from frontdoor.schemas import DetokenizeBody, SamplingFields, TokenizeBody
from frontdoor.state import front_door
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
    if body.prompt is not None and body.add_special_tokens is False:
        token_ids = front.tokenizer.encode_rendered(body.prompt)
    else:
        draft = Draft(
            body.prompt if body.prompt is not None else body.messages or (),
            SamplingFields(),
            tool_use=ToolUse(body.tools or ()),
            variables=body.chat_template_kwargs,
        )
        token_ids = list((await encode_prompt(front, draft)).token_ids)
    answered: dict[str, Any] = {
        "count": len(token_ids),
        "max_model_len": front.context.max_tokens,
        "tokens": token_ids,
    }
    if body.return_token_strs:
        texts = front.tokenizer.detokenizer
        answered["token_strs"] = [texts.bytes_alone(token).decode("utf-8", "replace") for token in token_ids]
    return JSONResponse(answered)


@router.post("/detokenize", openapi_extra=json_body("DetokenizeBody"))
async def detokenize(http: HttpRequest) -> JSONResponse:
    """Return the text of token ids, with the names of special tokens."""
    front = front_door(http)
    body = await read_json(http, DetokenizeBody, max_bytes=front.settings.max_body_bytes)
    check_model(front, body.model)
    return JSONResponse({"prompt": front.tokenizer.detokenizer.text_of(body.tokens)})
