"""Reads a request's body: it must be declared as JSON, within size and time limits, and match its schema.

A body with a Content-Length over the limit is refused before it is read, others as soon as they exceed it.
Knows nothing of the body's meaning.
"""

import asyncio
import json
from collections.abc import Callable, Collection, Coroutine, Sequence
from typing import Any, TypeVar

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect
from starlette.types import Scope

from frontdoor.http.errors import BodyTooLarge, BodyTooSlow, InvalidRequest, UnsupportedMediaType
from frontdoor.http.scope import header

JSON_TYPE = "application/json"
BODY_TIMEOUT_SECONDS = 30.0
LONG_BODY_BYTES = 16384  # a thread reads longer bodies, so that other clients need not wait
MAX_NAMED_PROBLEMS = 3
MAX_SHOWN = 100  # characters of a header that is wrong

BodyModel = TypeVar("BodyModel", bound=BaseModel)


class BodyRoute(APIRoute):
    """A route whose endpoint reads its body itself, so FastAPI resolves nothing for it."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        return self.endpoint


async def read_json(
    http: Request, model: type[BodyModel], *, max_bytes: int, types: Collection[str] = (JSON_TYPE,)
) -> BodyModel:
    """Read and check the body.

    Args:
        types: how it may be declared; the empty string allows no Content-Type.

    Raises:
        InvalidRequest, UnsupportedMediaType, BodyTooLarge, BodyTooSlow: answered by the error handler.
        ClientDisconnect: the client has left.
    """
    _check_declared_type(http.scope, types)
    body = await _read_in_time(http, max_bytes)
    if len(body) > LONG_BODY_BYTES:
        return await asyncio.to_thread(_parse, body, model)
    return _parse(body, model)


def _parse(body: bytes | bytearray, model: type[BodyModel]) -> BodyModel:
    if b'"extra_body"' in body:
        body = _without_extra_body(body)
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise explain(error) from None


def _without_extra_body(body: bytes | bytearray) -> bytes | bytearray:
    """Move the fields of `extra_body` to the top, as client libraries should do; existing fields win."""
    try:
        asked = json.loads(body)
        extra = asked.pop("extra_body") or {}
        return json.dumps({**extra, **asked}).encode()
    except (ValueError, RecursionError, AttributeError, LookupError, TypeError):
        return body  # no JSON object, or not at its top: the schema says what is wrong


def explain(error: ValidationError) -> InvalidRequest:
    """Turn pydantic's errors into one sentence that names the fields, without their values."""
    problems = error.errors(include_url=False, include_input=False, include_context=False)
    named = [_sentence(problem) for problem in problems[:MAX_NAMED_PROBLEMS]]
    if len(problems) > MAX_NAMED_PROBLEMS:
        named.append(f"and {len(problems) - MAX_NAMED_PROBLEMS} more")
    return InvalidRequest("; ".join(named), param=_path(problems[0]["loc"]) or None)


def _check_declared_type(scope: Scope, types: Collection[str]) -> None:
    media_type = (header(scope, b"content-type") or "").partition(";")[0].strip().lower()
    if media_type not in types:
        given = f"is declared as {media_type[:MAX_SHOWN]!r}" if media_type else "has no Content-Type"
        raise UnsupportedMediaType(
            f"the body {given}: send the header Content-Type: application/json (curl: --json instead of -d, "
            "or -H 'Content-Type: application/json')"
        )
    encoding = (header(scope, b"content-encoding") or "identity").strip().lower()
    if encoding != "identity":
        raise UnsupportedMediaType(
            f"Content-Encoding {encoding[:MAX_SHOWN]!r} is not supported: send the body without compression"
        )


async def _read_in_time(http: Request, max_bytes: int) -> bytearray:
    try:
        async with asyncio.timeout(BODY_TIMEOUT_SECONDS):
            return await _read_limited(http, max_bytes)
    except TimeoutError as error:
        raise BodyTooSlow(f"the body did not arrive within {BODY_TIMEOUT_SECONDS:g} s") from error


async def _read_limited(http: Request, max_bytes: int) -> bytearray:
    declared = header(http.scope, b"content-length") or ""
    if declared.isdigit() and int(declared[:20]) > max_bytes:
        raise _too_large(max_bytes)
    body, has_more = bytearray(), True
    while has_more:
        message = await http.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        has_more = message.get("more_body", False)
        if len(body) > max_bytes:
            raise _too_large(max_bytes)
    return body


def _too_large(max_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body is larger than MAX_BODY_BYTES={max_bytes}")


def _sentence(problem: Any) -> str:
    path = _path(problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"unknown field {path!r}"
    if problem["type"] == "missing":
        return f"{path!r} is required"
    if problem["type"] == "model_type":
        return f"{path or 'the body'} must be a JSON object"
    if not path:
        return str(problem["msg"])
    return f"{path!r}: {problem['msg']}"


def _path(location: Sequence[int | str]) -> str:
    path = ""
    for step in location:
        path += f"[{step}]" if isinstance(step, int) else f".{step}" if path else step
    return path[:200]  # an unknown field's name is the client's and may be long


def json_body(schema: str) -> dict[str, Any]:
    """Describe a route's body for the OpenAPI page; `schema` is the name of a body class."""
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return {"requestBody": {"required": True, "content": content}}
