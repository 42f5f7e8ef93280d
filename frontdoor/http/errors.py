"""The errors of an HTTP request, and the one handler that turns all errors into answers.

    ServiceError (config/errors.py)     500 internal_error
    ├── SpoolError (spool/errors.py)    429 rate_limit_exceeded, 503 overloaded, 507 disk_full, …
    ├── InvalidRequest                  400 invalid_request_error
    │   ├── ContextLengthExceeded       400 context_length_exceeded
    │   ├── Unauthorized                401 invalid_api_key
    │   ├── ForbiddenOrigin             403 forbidden_origin
    │   ├── NotFound                    404 not_found
    │   │   └── ModelNotFound           404 model_not_found
    │   ├── MethodNotAllowed            405 method_not_allowed
    │   ├── BadHttp                     400 bad_http
    │   ├── BodyTooSlow                 408 body_too_slow
    │   ├── HeadersTooSlow              408 headers_too_slow
    │   ├── Cancelled                   410 cancelled
    │   ├── BodyTooLarge                413 body_too_large
    │   ├── UnsupportedMediaType        415 unsupported_media_type
    │   ├── RangeNotSatisfiable         416 range_not_satisfiable
    │   └── HeadersTooLarge             431 headers_too_large
    ├── GenerationFailed                status and code of the failed Result
    ├── KeyLimitReached                 429 rate_limit_exceeded
    ├── TooManyConnections              503 overloaded
    ├── RingDown                        503 ring_down
    └── GenerationTimeout               504 timeout (the request goes on)

The body is {"error": {"message", "type", "param", "code"}}, the form of OpenAI, except on the paths of other
APIs (dialects.py); a time-out adds the request's id. The type and most headers follow from the status.
"""

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.routing import Match

from config.errors import SOON_SECONDS, ServiceError
from frontdoor.http.dialects import error_body

_DO_NOT_RETRY = {"x-should-retry": "false"}  # OpenAI's clients would retry these
_HEADERS = {
    401: {"WWW-Authenticate": "Bearer"},
    408: {"Connection": "close", **_DO_NOT_RETRY},
    409: _DO_NOT_RETRY,
    504: _DO_NOT_RETRY,
}
RETRIED = frozenset({429, 503, 507})  # each says when, in Retry-After
SERVED = (
    "/generate, /v1/chat/completions, /v1/completions, /v1/responses, /v1/messages, /v1/models and "
    "Ollama's routes under /api"
)

log = logging.getLogger(__name__)


class InvalidRequest(ServiceError):
    """The client must change its request before a retry."""

    status, code = 400, "invalid_request_error"


class ContextLengthExceeded(InvalidRequest):
    """The prompt alone leaves no room for an answer."""

    code = "context_length_exceeded"


class Unauthorized(InvalidRequest):
    status, code = 401, "invalid_api_key"


class ForbiddenOrigin(InvalidRequest):
    status, code = 403, "forbidden_origin"


class NotFound(InvalidRequest):
    status, code = 404, "not_found"


class ModelNotFound(NotFound):
    code = "model_not_found"


class MethodNotAllowed(InvalidRequest):
    status, code = 405, "method_not_allowed"


class BadHttp(InvalidRequest):
    code = "bad_http"


class BodyTooSlow(InvalidRequest):
    status, code = 408, "body_too_slow"


class HeadersTooSlow(InvalidRequest):
    status, code = 408, "headers_too_slow"


class HeadersTooLarge(InvalidRequest):
    """The headers are over their limit; the rest is not read."""

    status, code = 431, "headers_too_large"


class Cancelled(InvalidRequest):
    """The request was cancelled while this client waited for it."""

    status, code = 410, "cancelled"


class BodyTooLarge(InvalidRequest):
    """The body is over MAX_BODY_BYTES; the rest is dropped."""

    status, code = 413, "body_too_large"


class UnsupportedMediaType(InvalidRequest):
    status, code = 415, "unsupported_media_type"


class RangeNotSatisfiable(InvalidRequest):
    status, code = 416, "range_not_satisfiable"


class KeyLimitReached(ServiceError):
    """The API key is at one of its limits; nothing was accepted."""

    status, code = 429, "rate_limit_exceeded"

    def __init__(self, limit: str, value: int, retry_seconds: int) -> None:
        super().__init__(f"this API key is at its limit {limit}={value}; retry in {retry_seconds} s")
        self.limit, self.retry_seconds = limit, retry_seconds


class TooManyConnections(ServiceError):
    """This process has its most connections; no request was read."""

    status, code = 503, "overloaded"
    retry_seconds = SOON_SECONDS

    def __init__(self) -> None:
        super().__init__("too many connections; retry in a moment")


class RingDown(ServiceError):
    """The supervisor gave the ring up; nothing was accepted."""

    status, code = 503, "ring_down"
    retry_seconds = 30


class GenerationFailed(ServiceError):
    """The accepted request ended in an error, whose status and code are in its Result."""

    def __init__(self, error: Mapping[str, Any]) -> None:
        status = int(error["status"]) if error.get("status") else None
        super().__init__(
            str(error.get("message") or "the request failed"), code=error.get("code"), status=status
        )


class GenerationTimeout(ServiceError):
    """No answer within REQUEST_TIMEOUT; the request goes on and can be fetched by its id."""

    status, code = 504, "timeout"

    def __init__(self, request_id: str, timeout_seconds: float) -> None:
        super().__init__(
            f"no answer within REQUEST_TIMEOUT={timeout_seconds:g} s; the request goes on: "
            f"GET /requests/{request_id} fetches it, DELETE cancels it"
        )
        self.request_id = request_id


def body_of(error: ServiceError) -> dict[str, Any]:
    """Return the error in OpenAI's form."""
    kind = "invalid_request_error" if error.status < 500 else "server_error"
    if error.status == 429:
        kind = "rate_limit_error"
    said = {"message": str(error), "type": kind, "param": error.param, "code": error.code}
    if isinstance(error, GenerationTimeout):
        said["id"] = error.request_id
    return {"error": said}


def headers_of(error: ServiceError) -> dict[str, str]:
    """Return the headers of an error, the same in every API."""
    headers = dict(_HEADERS.get(error.status, {}))
    retry_seconds = error.retry_seconds
    if retry_seconds is None and error.status in RETRIED:  # an accepted request that failed
        retry_seconds = SOON_SECONDS
    if retry_seconds is not None:
        headers["Retry-After"] = str(retry_seconds)
    if isinstance(error, GenerationTimeout):
        headers["Location"] = f"/requests/{error.request_id}"
    return headers


def error_response(error: ServiceError, path: str) -> JSONResponse:
    """Write an error in the form of this path's API."""
    body = error_body(path, error.status, body_of(error))
    return JSONResponse(body, status_code=error.status, headers=headers_of(error))


def internal_error() -> ServiceError:
    """Return the error for an unexpected exception."""
    return ServiceError("internal error; ./launch.sh logs shows the details")


def from_http_exception(exception: HTTPException) -> ServiceError:
    """Translate the router's own exceptions (no route, wrong method)."""
    if exception.status_code == 404:
        return NotFound(f"no such path; this server serves {SERVED}; GET / lists the endpoints")
    if exception.status_code == 405:
        return MethodNotAllowed("method not allowed on this path; GET / lists the endpoints")
    if exception.status_code < 500:
        return InvalidRequest(str(exception.detail) or HTTPStatus(exception.status_code).phrase)
    return internal_error()


def _methods_of(http: Request) -> list[str]:
    """Return the methods of a path; the router names those of the first of its routes only."""

    def is_served(method: str) -> bool:
        scope = {**http.scope, "method": method}
        return any(route.matches(scope)[0] is Match.FULL for route in http.app.routes)

    found = [method for method in ("DELETE", "GET", "POST") if is_served(method)]
    return [*found, "HEAD"] if "GET" in found else found


def install_error_handler(app: FastAPI) -> None:
    """Turn ServiceErrors and the router's exceptions into answers; Edge handles all others."""

    async def handle(http: Request, exception: Exception) -> Response:
        path = http.scope["path"]
        if isinstance(exception, HTTPException):
            response = error_response(from_http_exception(exception), path)
            response.headers.update(exception.headers or {})
            if exception.status_code == 405:
                response.headers["allow"] = ", ".join(_methods_of(http))
            return response
        if not isinstance(exception, ServiceError):
            exception = InvalidRequest("the path or query is not valid")
        return error_response(exception, path)

    for kind in (ServiceError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, handle)
