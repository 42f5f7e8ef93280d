"""Ollama's API under /api: the served model, chats, prompts; what would change the model is refused.

frontdoor/dialects/ollama_bodies.py translates the bodies, ollama_answers.py writes the answers and
ollama_models.py the model. `:latest` behind a name, or missing there, makes no difference on these routes.
"""

from contextlib import suppress
from dataclasses import replace

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response

from frontdoor.dialects.dialect import Asked
from frontdoor.dialects.ollama_answers import ChatRenderer, GenerateRenderer, OllamaRenderer
from frontdoor.dialects.ollama_bodies import (
    OllamaBody,
    OllamaChatBody,
    OllamaGenerateBody,
    OllamaShowBody,
)
from frontdoor.dialects.ollama_models import list_models, list_running, show_model
from frontdoor.encoding import Draft, in_worker, with_suffix
from frontdoor.http.bodies import JSON_TYPE, BodyModel, BodyRoute, json_body, read_json
from frontdoor.http.errors import InvalidRequest, ModelNotFound
from frontdoor.routes.dialect import answer_draft
from frontdoor.served_model import check_model
from frontdoor.state import FrontDoor, front_door

API_VERSION = "0.33.0"  # of Ollama, whose API this is: clients compare it
TAG = ":latest"
# litellm 1.108 declares nothing, and curl a form: Ollama's own examples are so. No HTML form can write JSON.
TYPES = (JSON_TYPE, "", "application/x-www-form-urlencoded")
_ONE_MODEL = "this server serves one model, which MODEL_REPO in .env sets"
_NO_EMBEDDINGS = "this server makes no embeddings: it serves a model that writes text"
REFUSED = {
    "/api/pull": f"{_ONE_MODEL}: set it and run ./launch.sh restart instead of pulling a model",
    "/api/push": f"{_ONE_MODEL}: it pushes none",
    "/api/create": f"{_ONE_MODEL}: it creates none",
    "/api/copy": f"{_ONE_MODEL}: MODEL_ALIASES adds names for it",
    "/api/delete": f"{_ONE_MODEL}: it deletes none",
    "/api/blobs/{digest}": f"{_ONE_MODEL}: it takes no files",
    "/api/embed": _NO_EMBEDDINGS,
    "/api/embeddings": _NO_EMBEDDINGS,
}

OUR_NAMES = {"response_format": "format", "reasoning_effort": "think"}  # in errors of the internal form

router = APIRouter(route_class=BodyRoute)


@router.post("/api/chat", openapi_extra=json_body("OllamaChatBody"))
async def chat(http: HttpRequest) -> Response:
    """Answer a chat."""
    return await _answer(http, OllamaChatBody, ChatRenderer)


@router.post("/api/generate", openapi_extra=json_body("OllamaGenerateBody"))
async def generate(http: HttpRequest) -> Response:
    """Answer a prompt, or continue a text."""
    return await _answer(http, OllamaGenerateBody, GenerateRenderer)


@router.get("/api/version")
async def version(_: HttpRequest) -> Response:
    """Name the version of Ollama's API."""
    return JSONResponse({"version": API_VERSION})


@router.get("/api/tags")
async def tags(http: HttpRequest) -> Response:
    """List the served model under all its names."""
    front = front_door(http)
    return JSONResponse({"models": await in_worker(front, list_models, front)})


@router.get("/api/ps")
async def running(http: HttpRequest) -> Response:
    """List the loaded model."""
    front = front_door(http)
    return JSONResponse({"models": await in_worker(front, list_running, front)})


@router.post("/api/show", openapi_extra=json_body("OllamaShowBody"))
async def show(http: HttpRequest) -> Response:
    """Describe the served model."""
    front = front_door(http)
    body = await _read(http, OllamaShowBody)
    name = body.model or body.name
    if not name:
        raise InvalidRequest("'model' is required", param="model")
    check_name(front, name)
    return JSONResponse(await in_worker(front, show_model, front))


async def refuse(http: HttpRequest) -> Response:
    """Refuse what this server does not do."""
    raise InvalidRequest(REFUSED[http.scope["route"].path], status=501, code="not_supported")


for _path in REFUSED:
    router.add_api_route(_path, refuse, methods=["DELETE" if _path == "/api/delete" else "POST"])


def check_name(front: FrontDoor, name: str) -> None:
    """Accept the names of the model, each with and without `:latest`.

    Raises:
        ModelNotFound: another name.
    """
    for other in (name.removesuffix(TAG), name + TAG):
        with suppress(ModelNotFound):
            check_model(front, other)
            return
    check_model(front, name)


async def _read(http: HttpRequest, model: type[BodyModel]) -> BodyModel:
    return await read_json(http, model, max_bytes=front_door(http).settings.max_body_bytes, types=TYPES)


async def _answer(
    http: HttpRequest,
    model: type[OllamaChatBody] | type[OllamaGenerateBody],
    renderer: type[OllamaRenderer],
) -> Response:
    front = front_door(http)
    body = await _read(http, model)
    check_name(front, body.model)
    front.hints.note_names(body.hints())
    if body.is_empty:
        return JSONResponse(renderer.loaded(body.model))

    def make_renderer(asked: Asked) -> OllamaRenderer:
        return renderer(replace(asked, model=body.model), front.tokenizer.detokenizer)

    draft = await in_worker(front, _draft, front, body)
    try:
        return await answer_draft(http, draft, make_renderer, is_streamed=body.is_streamed)
    except InvalidRequest as error:
        if error.param not in OUR_NAMES:
            raise
        reason = str(error).removeprefix("'response_format': ").removeprefix("json_schema.schema: ")
        name = OUR_NAMES[error.param]
        raise InvalidRequest(f"'{name}': {reason}", param=name) from error


def _draft(front: FrontDoor, body: OllamaBody) -> Draft:
    """Return the draft of a body, as far as the model can answer it.

    Raises:
        InvalidRequest: a field is wrong, or the model has no tokens for a suffix.
    """
    draft, tokenizer = body.draft(), front.tokenizer
    if (
        body.think is True
        and tokenizer.formats.reasoning
        and not tokenizer.can_set_effort(draft.effort or "")
    ):
        draft = replace(draft, effort=None)  # the model always thinks
    if isinstance(body, OllamaGenerateBody) and body.suffix:
        draft = replace(draft, prompt=with_suffix(front, body.prompt or "", body.suffix))
    return draft
