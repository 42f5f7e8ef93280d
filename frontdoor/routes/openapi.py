"""The OpenAPI description: FastAPI's own, plus bodies, answers, errors, headers, keys and HEAD.

The routes read their bodies themselves, and the layers around them answer as well, so FastAPI knows little of
either. What holds for many routes is derived here from a route's path, method and body; what is a route's own
is in openapi_answers.py.
"""

import re
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from frontdoor.dialects.anthropic_bodies import CountTokensBody, MessagesBody
from frontdoor.dialects.ollama_bodies import OllamaChatBody, OllamaGenerateBody, OllamaShowBody
from frontdoor.dialects.responses_bodies import ResponsesBody
from frontdoor.http.auth import is_open
from frontdoor.http.bodies import JSON_TYPE
from frontdoor.http.dialects import ERROR_SCHEMAS, error_schema
from frontdoor.http.errors import RETRIED
from frontdoor.request_lookup import ID
from frontdoor.routes.ollama import REFUSED
from frontdoor.routes.openapi_answers import ANSWERS, REF_TEMPLATE, SCHEMAS, Answers, reference
from frontdoor.schemas import BatchBody, ChatBody, CompletionBody, DetokenizeBody, GenerateBody, TokenizeBody

Operation = dict[str, Any]

BODIES = (
    *(GenerateBody, TokenizeBody, DetokenizeBody),
    *(ChatBody, CompletionBody, ResponsesBody, BatchBody),
    *(MessagesBody, CountTokensBody),
    *(OllamaChatBody, OllamaGenerateBody, OllamaShowBody),
)
EVERYWHERE = (400, 403, 408, 431, 500, 503)
_NAMES = re.compile(r"\{(\w+)\}")
SECURITY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}


def describe(app: FastAPI, *, needs_keys: bool) -> dict[str, Any]:
    """Return the description of an app."""
    description = FastAPI.openapi(app)
    modes = [(body, "validation") for body in BODIES]
    _, definitions = models_json_schema(modes, ref_template=REF_TEMPLATE)  # type: ignore[arg-type]
    description["components"] = {
        "schemas": {**definitions["$defs"], **ERROR_SCHEMAS, **SCHEMAS},
        "securitySchemes": SECURITY_SCHEMES,
    }
    description["security"] = [{}] * (not needs_keys) + [{name: []} for name in SECURITY_SCHEMES]
    for path, operations in description["paths"].items():
        for method, operation in operations.items():
            _complete(path, f"{method.upper()} {path}", operation)
        if "get" in operations:
            operations["head"] = _head_of(operations["get"])
    return description


def endpoints(description: dict[str, Any]) -> Iterator[str]:
    """Yield the routes that do something, as `GET /path`."""
    for path, operations in description["paths"].items():
        for method, operation in operations.items():
            if method != "head" and "200" in operation["responses"]:
                yield f"{method.upper()} {path}"


def _complete(path: str, route: str, operation: Operation) -> None:
    answers = ANSWERS.get(route)
    described = {} if answers is None else answers.responses()
    for status in _statuses(path, operation, answers):
        _add_error(described, path, status)
    operation["responses"] = dict(sorted(described.items()))
    parameters = [_path_parameter(name) for name in _NAMES.findall(path)]
    parameters += [] if answers is None else answers.parameters
    if parameters:
        operation["parameters"] = parameters
    if is_open(path):
        operation["security"] = []


def _path_parameter(name: str) -> Operation:
    pattern = {"pattern": f"^{ID.pattern}$"} if name == "request_id" else {}
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string", **pattern}}


def _statuses(path: str, operation: Operation, answers: Answers | None) -> set[int]:
    """Return the statuses of a route's errors."""
    statuses = {*EVERYWHERE, *(() if answers is None else answers.errors)}
    statuses |= set() if is_open(path) else {401}
    statuses |= {404} if "{" in path else set()
    statuses |= {404, 413, 415} if "requestBody" in operation else set()
    return statuses | ({501} if path in REFUSED else set())


def _add_error(described: dict[str, Any], path: str, status: int) -> None:
    schema = reference(error_schema(path))
    if str(status) in described:  # the layers around the route answer with this status as well
        content = described[str(status)]["content"][JSON_TYPE]
        content["schema"] = {"anyOf": [content["schema"], schema]}
        return
    response: dict[str, Any] = {
        "description": HTTPStatus(status).phrase,
        "content": {JSON_TYPE: {"schema": schema}},
    }
    header = "WWW-Authenticate" if status == 401 else "Retry-After" if status in RETRIED else None
    if header is not None:
        response["headers"] = {header: {"required": True, "schema": {"type": "string"}}}
    described[str(status)] = response


def _head_of(get: Operation) -> Operation:
    """Describe HEAD: GET without a body."""
    responses = {
        status: {name: value for name, value in response.items() if name != "content"}
        for status, response in get["responses"].items()
    }
    return {**get, "operationId": f"{get['operationId']}_head", "responses": responses}
