"""Maps a path to its API, and writes errors in that API's form.

    /v1/messages     Anthropic   {"type": "error", "error": {"type", "message"}}
    /messages        the same      a connection refuses before the path is canonical (paths.py)
    /api             Ollama      {"error": "…"}
    all else         OpenAI      {"error": {"message", "type", "param", "code"}}

Clients misread errors in another API's form. Pure: knows paths, nothing of routes.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

ErrorWriter = Callable[[int, Mapping[str, Any]], dict[str, Any]]


def _all_of(members: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "object", "required": list(members), "properties": members}


NO_THREADS = "thread_unsupported_request"  # anthropic 2.14's tool runner then sends all messages instead
_ANTHROPIC_TYPES = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error",
    404: "not_found_error", 408: "timeout_error", 413: "request_too_large", 429: "rate_limit_error",
    500: "api_error", 503: "overloaded_error", 504: "timeout_error", 507: "overloaded_error",
}  # fmt: skip
_MAYBE_STRING = {"type": ["string", "null"]}
_OPENAI_MEMBERS = {
    "message": {"type": "string"},
    "type": {"type": "string"},
    "param": _MAYBE_STRING,
    "code": _MAYBE_STRING,
}
_ANTHROPIC_MEMBERS = {"type": {"enum": sorted({*_ANTHROPIC_TYPES.values()})}, "message": {"type": "string"}}
ERROR_SCHEMAS = {
    "OpenAIError": _all_of({"error": _all_of(_OPENAI_MEMBERS)}),
    "AnthropicError": _all_of({"type": {"const": "error"}, "error": _all_of(_ANTHROPIC_MEMBERS)}),
    "OllamaError": _all_of({"error": {"type": "string"}}),
}
_ANTHROPIC_WORDS = [
    (re.compile(pattern), words)
    for pattern, words in (
        (
            r"This model's maximum context length is (\d+) tokens\. However, your messages resulted in "
            r"((?:at least )?\d+) tokens, and the answer needs one or more\.",
            r"prompt is too long: \2 tokens > \1 maximum.",
        ),
        (r"'response_format': json_schema\.schema", "output_config.format.schema"),
        (r"'tools': (\[\d+\])\.function\.parameters", r"tools\1.input_schema"),
        (r"'tools': (\[\d+\])\.function", r"tools\1"),
        (r"\[(\d+)\]", r".\1"),
        (r"unknown field '([\w.]+)'", r"\1: Extra inputs are not permitted"),
        (r"'([\w.]+)' is required", r"\1: Field required"),
        (r"(^|; )'([\w.]+)': ", r"\1\2: "),
    )
]


def error_body(path: str, status: int, body: Mapping[str, Any]) -> Mapping[str, Any]:
    """Write an error in the form of this path's API; `body` is the OpenAI form, which most APIs use."""
    _, write = _form_of(path)
    return body if write is None else write(status, body["error"])


def error_schema(path: str) -> str:
    """Return the name of the schema of this path's errors."""
    return _form_of(path)[0]


def _form_of(path: str) -> tuple[str, ErrorWriter | None]:
    found = (form for prefix, form in _FORMS.items() if f"{path}/".startswith(f"{prefix}/"))
    return next(found, ("OpenAIError", None))


def _as_anthropic(status: int, error: Mapping[str, Any]) -> dict[str, Any]:
    fallback = "invalid_request_error" if status < 500 else "api_error"
    kind = _ANTHROPIC_TYPES.get(status, fallback)
    said = {"type": kind, "message": _in_anthropics_words(error["message"])}
    details = {"details": {"error_code": NO_THREADS}} if error["code"] == NO_THREADS else {}
    return {"type": "error", "error": {**said, **details}}


def _in_anthropics_words(message: str) -> str:
    """Say it as its clients know it: Claude Code 2.1 does without a field that is not permitted."""
    for pattern, words in _ANTHROPIC_WORDS:
        message = pattern.sub(words, message)
    return message


def _as_ollama(_status: int, error: Mapping[str, Any]) -> dict[str, Any]:
    return {"error": error["message"]}


_FORMS: Mapping[str, tuple[str, ErrorWriter]] = {
    "/v1/messages": ("AnthropicError", _as_anthropic),
    "/messages": ("AnthropicError", _as_anthropic),
    "/api": ("OllamaError", _as_ollama),
}
