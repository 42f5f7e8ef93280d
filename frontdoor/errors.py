"""Every error a client can get, with its HTTP status and a stable code, and the one place that writes them.

    FrontDoorError                      500 internal_error
    ├── InvalidRequest                  400 invalid_request_error
    │   ├── ContextLengthExceeded       400 context_length_exceeded
    │   ├── Unauthorized                401 invalid_api_key
    │   ├── ForbiddenOrigin             403 forbidden_origin
    │   ├── NotFound                    404 not_found
    │   │   ├── ModelNotFound           404 model_not_found
    │   │   └── ApiNotServed            404 api_not_served
    │   ├── MethodNotAllowed            405 method_not_allowed
    │   ├── BadHttp                     400 bad_http
    │   ├── BodyTooSlow                 408 body_too_slow
    │   ├── HeadersTooSlow              408 headers_too_slow
    │   ├── IdempotencyConflict         409 idempotency_conflict  (x-should-retry: false)
    │   ├── Cancelled                   410 cancelled
    │   ├── BodyTooLarge                413 body_too_large
    │   ├── UnsupportedMediaType        415 unsupported_media_type
    │   └── HeadersTooLarge             431 headers_too_large
    ├── QueueFull                       429 rate_limit_exceeded   (Retry-After)
    ├── GenerationFailed                status and code of the failed Result
    ├── Overloaded                      503 overloaded, 507 disk_full   (Retry-After)
    │   └── TooManyConnections          503 overloaded            (Retry-After)
    ├── RingDown                        503 ring_down             (Retry-After)
    └── GenerationTimeout               504 timeout               (x-should-retry: false; the request goes on)

The body is {"error": {"message", "type", "param", "code"}}, as the OpenAI clients read it, but on the paths
of other APIs (dialects.py); a time-out adds the request's id. Knows nothing of the spool's own exceptions:
who calls the spool translates them.
"""

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from frontdoor.dialects import api_not_served, error_body

_ASK_FOR_KEY = {"WWW-Authenticate": "Bearer"}
_CLOSE = {"Connection": "close"}
_CLOSE_FOR_GOOD = {"Connection": "close", "x-should-retry": "false"}
_COME_BACK_LATER = {"Retry-After": "30"}
_DO_NOT_RETRY = {"x-should-retry": "false"}
SOON_SECONDS = 2
SERVED = "/generate, /v1/chat/completions, /v1/completions and /v1/models"

log = logging.getLogger(__name__)


class FrontDoorError(Exception):
    """An answer other than the one asked for; `status` and `code` are promises to clients."""

    status = 500
    code = "internal_error"
    type = "server_error"
    headers: Mapping[str, str] = {}

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param

    def body(self) -> dict[str, Any]:
        """Return the OpenAI-shaped error object."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


class InvalidRequest(FrontDoorError):
    """The client has to change something before it asks again."""

    status = 400
    code = "invalid_request_error"
    type = "invalid_request_error"


class ContextLengthExceeded(InvalidRequest):
    """The prompt alone leaves no room for an answer."""

    code = "context_length_exceeded"


class Unauthorized(InvalidRequest):
    """Keys are required and none of ours was given."""

    status = 401
    code = "invalid_api_key"
    headers = _ASK_FOR_KEY


class ForbiddenOrigin(InvalidRequest):
    """A web page of another site asks through a user's browser."""

    status = 403
    code = "forbidden_origin"


class NotFound(InvalidRequest):
    """No such path or request."""

    status = 404
    code = "not_found"


class ModelNotFound(NotFound):
    """The body names a model that is not the one served here."""

    code = "model_not_found"


class ApiNotServed(NotFound):
    """The path belongs to a known API that this server does not serve."""

    code = "api_not_served"


class MethodNotAllowed(InvalidRequest):
    """The path exists, with other methods."""

    status = 405
    code = "method_not_allowed"


class BadHttp(InvalidRequest):
    """What arrived cannot be read as HTTP."""

    code = "bad_http"


class BodyTooSlow(InvalidRequest):
    """The body did not arrive in time."""

    status = 408
    code = "body_too_slow"
    headers = _CLOSE_FOR_GOOD


class HeadersTooSlow(InvalidRequest):
    """The headers did not arrive in time."""

    status = 408
    code = "headers_too_slow"
    headers = _CLOSE_FOR_GOOD


class HeadersTooLarge(InvalidRequest):
    """The headers are over their limit; the rest of them is not read."""

    status = 431
    code = "headers_too_large"


class IdempotencyConflict(InvalidRequest):
    """The Idempotency-Key belongs to a request that asked for something else."""

    status = 409
    code = "idempotency_conflict"
    headers = _DO_NOT_RETRY  # clients retry a 409 by themselves

    def __init__(self) -> None:
        super().__init__(
            "this Idempotency-Key was used for a request that asked for something else",
            param="Idempotency-Key",
        )


class Cancelled(InvalidRequest):
    """Somebody cancelled the request that this client waited for."""

    status = 410
    code = "cancelled"


class BodyTooLarge(InvalidRequest):
    """The body is over MAX_BODY_BYTES; the rest of it is dropped."""

    status = 413
    code = "body_too_large"


class UnsupportedMediaType(InvalidRequest):
    """The body is not declared as JSON."""

    status = 415
    code = "unsupported_media_type"


class QueueFull(FrontDoorError):
    """The spool is at its limit; nothing was accepted."""

    status = 429
    code = "rate_limit_exceeded"
    type = "rate_limit_error"

    def __init__(self, message: str, *, retry_seconds: int = SOON_SECONDS) -> None:
        super().__init__(message)
        self.headers = {"Retry-After": str(retry_seconds)}


class Overloaded(FrontDoorError):
    """The spool cannot take the request now; nothing was accepted. A full disk has its own code, and 507."""

    status = 503
    code = "overloaded"

    def __init__(
        self,
        message: str,
        *,
        status: int = 503,
        code: str = "overloaded",
        retry_seconds: int = SOON_SECONDS,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = {"Retry-After": str(retry_seconds)}


class TooManyConnections(Overloaded):
    """This process serves as many connections as it may; no request was read."""

    def __init__(self) -> None:
        super().__init__("too many connections; come back in a moment")
        self.headers = {**self.headers, **_CLOSE}


class RingDown(FrontDoorError):
    """The supervisor has given the ring up; nothing was accepted."""

    status = 503
    code = "ring_down"
    headers = _COME_BACK_LATER


class GenerationFailed(FrontDoorError):
    """The accepted request ended in an error: status and code are those of its Result."""

    def __init__(self, error: Mapping[str, Any]) -> None:
        super().__init__(str(error.get("message") or "the request failed"))
        self.status = int(error.get("status") or FrontDoorError.status)
        self.code = str(error.get("code") or FrontDoorError.code)
        self.type = "invalid_request_error" if self.status < 500 else FrontDoorError.type


class GenerationTimeout(FrontDoorError):
    """No answer within REQUEST_TIMEOUT; the request goes on and can be fetched by its id."""

    status = 504
    code = "timeout"
    headers = _DO_NOT_RETRY

    def __init__(self, request_id: str, timeout_seconds: float) -> None:
        super().__init__(
            f"no answer within REQUEST_TIMEOUT={timeout_seconds:g} s; the request goes on: "
            f"GET /requests/{request_id} fetches it, DELETE cancels it"
        )
        self.request_id = request_id
        self.headers = {**self.headers, "Location": f"/requests/{request_id}"}

    def body(self) -> dict[str, Any]:
        body = super().body()
        body["error"]["id"] = self.request_id
        return body


def error_response(error: FrontDoorError, path: str) -> JSONResponse:
    """Write an error the way every route of this path's API does."""
    body = error_body(path, error.status, error.body())
    return JSONResponse(body, status_code=error.status, headers=dict(error.headers))


def internal_error() -> FrontDoorError:
    """What a client is told of an exception that nobody expected."""
    return FrontDoorError("internal error; the log has the details")


def from_http_exception(exception: HTTPException, path: str) -> FrontDoorError:
    """Translate what the router itself raises (no route, wrong method)."""
    if exception.status_code == 404:
        api = api_not_served(path)
        if api is not None:
            return ApiNotServed(f"this server does not serve {api} yet; it serves {SERVED}")
        return NotFound(f"no such path; this server serves {SERVED}; GET / lists the endpoints")
    if exception.status_code == 405:
        return MethodNotAllowed("method not allowed on this path; GET / lists the endpoints")
    if exception.status_code < 500:
        return InvalidRequest(str(exception.detail) or HTTPStatus(exception.status_code).phrase)
    return internal_error()


def install_error_handler(app: FastAPI) -> None:
    """Make every exception of ours and of the router an answer in its API's shape; Edge has the others."""

    async def handle(http: Request, exception: Exception) -> Response:
        path = http.scope["path"]
        if isinstance(exception, HTTPException):
            response = error_response(from_http_exception(exception, path), path)
            response.headers.update(exception.headers or {})
            if response.headers.get("allow") == "GET":
                response.headers["allow"] = "GET, HEAD"
            return response
        if isinstance(exception, RequestValidationError):
            return error_response(InvalidRequest("the path or query is not valid"), path)
        assert isinstance(exception, FrontDoorError)
        return error_response(exception, path)

    for kind in (FrontDoorError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, handle)
