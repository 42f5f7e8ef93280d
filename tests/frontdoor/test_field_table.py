"""The page's table of fields and routes is that of the bodies.

`python -m tests.frontdoor.test_field_table --write` writes it into docs/clients.md.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from types import UnionType
from typing import Any, Union, get_args, get_origin

from fastapi.routing import APIRoute
from pydantic import BaseModel

from config import REPOSITORY_ROOT
from frontdoor.app import ROUTE_MODULES
from frontdoor.schemas import Only

PAGE = REPOSITORY_ROOT / "docs" / "clients.md"
TABLE = re.compile(r"(?<=<!-- fields -->\n).*?(?=<!-- /fields -->)", re.DOTALL)
# The routes that answer a prompt; those that are not served have no column.
ROUTES = (
    "/generate",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/messages",
    "/v1/responses",
    "/api/chat",
    "/api/generate",
)
NO_EFFECT = ("NoEffectFields", "Hints")  # ends of names of classes


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
    properties = body.model_json_schema()["properties"]
    for name, field in body.model_fields.items():
        if inner := _find_inner(field.annotation):
            found |= judge_fields(inner, f"{place}{name}.")
            continue
        home = next(each for each in reversed(body.__mro__) if name in getattr(each, "model_fields", ()))
        found[place + name] = "hint" if home.__name__.endswith(NO_EFFECT) else "honoured"
        if any(isinstance(note, Only) for note in field.metadata):
            neutral = [json.dumps(value) for value in properties[name]["enum"] if value is not None]
            found[place + name] = f"refused unless `{'`, `'.join(neutral)}`" if neutral else "refused"
    return found


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


def test_the_words_are_those_of_the_bodies() -> None:
    """One field of each kind, so that the table's own code cannot call all fields the same."""
    judged = judge_fields(find_bodies()["/v1/chat/completions"])
    wanted = {"messages": "honoured", "keep_alive": "hint", "user": "hint", "audio": "refused"}
    wanted |= {"stream_options.include_usage": "honoured", "min_tokens": "refused unless `0`"}
    assert {name: judged[name] for name in wanted} == wanted


if __name__ == "__main__" and sys.argv[1:] == ["--write"]:
    PAGE.write_text(TABLE.sub(lambda _: make_table(), PAGE.read_text("utf-8")), "utf-8")
