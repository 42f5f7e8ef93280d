"""The OpenAPI description: FastAPI's own, plus the bodies, which the routes read themselves."""

from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from frontdoor.dialects.anthropic_bodies import CountTokensBody, MessagesBody
from frontdoor.dialects.ollama_bodies import OllamaChatBody, OllamaGenerateBody, OllamaShowBody
from frontdoor.dialects.responses_bodies import ResponsesBody
from frontdoor.schemas import ChatBody, CompletionBody, DetokenizeBody, GenerateBody, TokenizeBody

REF_TEMPLATE = "#/components/schemas/{model}"


def describe(app: FastAPI) -> dict[str, Any]:
    """Return the description of an app with the schemas of its bodies."""
    description = FastAPI.openapi(app)
    ours = (GenerateBody, TokenizeBody, DetokenizeBody)
    openai = (ChatBody, CompletionBody, ResponsesBody)
    ollama = (OllamaChatBody, OllamaGenerateBody, OllamaShowBody)
    bodies = (*ours, *openai, MessagesBody, CountTokensBody, *ollama)
    modes = [(body, "validation") for body in bodies]
    _, definitions = models_json_schema(modes, ref_template=REF_TEMPLATE)  # type: ignore[arg-type]
    description.setdefault("components", {}).setdefault("schemas", {}).update(definitions["$defs"])
    return description
