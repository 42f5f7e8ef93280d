"""The page's table of fields and routes is that of the bodies, and the routes do what it says.

`python -m tests.frontdoor.test_field_table --write` writes it into docs/clients.md.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from types import UnionType
from typing import Any, Union, get_args, get_origin

import pytest
from fastapi.routing import APIRoute
from pydantic import BaseModel

from config import REPOSITORY_ROOT
from frontdoor.app import ROUTE_MODULES
from frontdoor.schemas import Only
from tests.services.frontdoor_service import Service

PAGE = REPOSITORY_ROOT / "docs" / "clients.md"
TABLE = re.compile(r"(?<=<!-- fields -->\n).*?(?=<!-- /fields -->)", re.DOTALL)
USER = [{"role": "user", "content": "hi"}]
# The routes that answer a prompt, each with the least of a body; those that are not served have no column.
ROUTES: dict[str, dict[str, Any]] = {
    "/generate": {"prompt": "hi"},
    "/v1/chat/completions": {"messages": USER},
    "/v1/completions": {"prompt": "hi"},
    "/v1/messages": {"model": "tiny", "messages": USER, "max_tokens": 2, "thinking": {"type": "adaptive"}},
    "/v1/responses": {"input": "hi"},
    "/api/chat": {"model": "tiny", "messages": USER, "stream": False},
    "/api/generate": {"model": "tiny", "prompt": "hi", "stream": False},
}
HINTS: dict[str, Any] = {"truncation": "auto", "stream_options": {}}  # hints that may not hold anything
NO_EFFECT = ("NoEffectFields", "Hints")  # ends of names of classes
# What becomes of fields where no class and no annotation says it; those that may hold anything must be here.
BY_HAND = {
    **dict.fromkeys(
        (
            "SamplingFields.response_format",
            "SamplingFields.structured_outputs",
            "SamplingFields.guided_json",
            "SamplingFields.guided_regex",
            "SamplingFields.guided_choice",
            "SamplingFields.guided_grammar",
            "ResponsesBody.tool_choice",
            "OllamaChatBody.tools",
        ),
        "honoured",
    ),
    **dict.fromkeys(
        (
            "OutputConfig.task_budget",
            "Thinking.display",
            "ResponsesBody.client_metadata",
            "ResponsesBody.max_tool_calls",
            "ResponsesBody.stream_options",
            "ResponsesBody.truncation",
            "ReasoningOptions.summary",
            "ReasoningOptions.generate_summary",
            "ReasoningOptions.context",
            "TextOptions.verbosity",
        ),
        "hint",
    ),
    **dict.fromkeys(
        (
            "MessagesBody.thread",
            "ResponsesBody.response_format",
            "ResponsesBody.previous_response_id",
            "ResponsesBody.conversation",
            "ResponsesBody.background",
            "ResponsesBody.prompt",
            "ResponsesBody.max_tokens",
            "ResponsesBody.max_completion_tokens",
        ),
        "refused",
    ),
}


def find_bodies() -> dict[str, type[BaseModel]]:
    """Return the body of each route that is served."""
    classes = {each.__name__: each for each in _subclasses(BaseModel)}
    found = {}
    for route in (route for module in ROUTE_MODULES for route in module.router.routes):
        if isinstance(route, APIRoute) and route.path in ROUTES:
            assert route.openapi_extra, f"{route.path} names no body"
            schema = route.openapi_extra["requestBody"]["content"]["application/json"]["schema"]
            found[route.path] = classes[schema["$ref"].rpartition("/")[2]]
    return {path: found[path] for path in ROUTES if path in found}


def _subclasses(parent: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for child in parent.__subclasses__():
        yield child
        yield from _subclasses(child)


def judge_fields(body: type[BaseModel], place: str = "") -> dict[str, str]:
    """Return what becomes of each field; members of an object that has a body of its own are fields too."""
    found: dict[str, str] = {}
    for name, field in body.model_fields.items():
        path = place + (field.alias or name)
        found[path] = _judge(body, name)
        if inner := _find_inner(field.annotation):
            members = judge_fields(inner, f"{path}.")
            is_hint = found[path] == "hint"
            found |= {
                key: "hint" if is_hint and said == "honoured" else said for key, said in members.items()
            }
    return found


def _judge(body: type[BaseModel], name: str) -> str:
    field = body.model_fields[name]
    if any(isinstance(note, Only) for note in field.metadata):
        schema = body.model_json_schema()["properties"][name]
        neutral = [json.dumps(value) for value in schema["enum"] if value is not None]
        return f"refused unless `{'`, `'.join(neutral)}`" if neutral else "refused"
    home = next(each for each in reversed(body.__mro__) if name in getattr(each, "model_fields", ()))
    if home.__name__.endswith(NO_EFFECT):
        return "hint"
    said = BY_HAND.get(f"{body.__name__}.{name}") or BY_HAND.get(f"{home.__name__}.{name}")
    is_open = field.annotation is Any and not field.metadata
    assert said or not is_open, f"BY_HAND must say what becomes of {home.__name__}.{name}"
    return said or "honoured"


def _find_inner(annotation: Any) -> type[BaseModel] | None:
    """Return the body of a field that holds one object; members of lists are no fields of the request."""
    of_union = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    inner = (each for each in of_union if isinstance(each, type) and not get_origin(each))
    return next((each for each in inner if issubclass(each, BaseModel)), None)


def make_table() -> str:
    """Return the table as the page has it."""
    judged = {path: judge_fields(body) for path, body in find_bodies().items()}
    names = sorted({name for fields in judged.values() for name in fields})
    rows = [["field", *(f"`{path}`" for path in judged)], ["---"] * (len(judged) + 1)]
    rows += [[f"`{name}`", *(fields.get(name, "-") for fields in judged.values())] for name in names]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def test_the_page_has_every_field_of_every_route() -> None:
    """With the word that says what becomes of it: it cannot age."""
    (written,) = TABLE.findall(PAGE.read_text("utf-8"))
    assert written == make_table(), f"run python -m {__name__} --write"


@pytest.mark.parametrize("path", find_bodies())
def test_hints_are_accepted_and_refused_fields_are_not(service: Service, path: str) -> None:
    """Each alone, beside the least that the route takes."""
    for name, word in judge_fields(find_bodies()[path]).items():
        if word == "hint" or word.startswith("refused"):
            value: Any = HINTS.get(name, True) if word == "hint" else {"x": 1}
            outer, _, inner = name.partition(".")
            sent = {**ROUTES[path].get(outer, {}), inner: value} if inner else value
            answer = service.http.post(path, json={**ROUTES[path], outer: sent})
            assert answer.status_code == (200 if word == "hint" else 400), (name, word, answer.text)


if __name__ == "__main__" and sys.argv[1:] == ["--write"]:
    PAGE.write_text(TABLE.sub(lambda _: make_table(), PAGE.read_text("utf-8")), "utf-8")
