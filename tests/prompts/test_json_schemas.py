"""Rewritten schemas: they allow nothing new, they stay satisfiable, and llguidance takes more of them."""

import json
from pathlib import Path
from typing import Any

import pytest

from frontdoor.constraints import schema_grammar
from prompts.json_schemas import rewrite

CORPUS = json.loads((Path(__file__).parents[1] / "clients" / "schemas.json").read_text())
UNSUPPORTED = {"zod:5": "properties.e", "zod:19": "properties.s", "zod:20": "properties.not"}
NO_OTHERS = {"additionalProperties": False}
LISTED: dict[str, Any] = {"properties": {"a": {}}}
CLOSED = {**LISTED, **NO_OTHERS}


@pytest.mark.parametrize(
    ("schema", "rewritten"),
    [
        (LISTED, CLOSED),
        ({"items": LISTED, "$defs": {"x": LISTED}}, {"items": CLOSED, "$defs": {"x": CLOSED}}),
        ({"anyOf": [LISTED, {"$ref": "#"}]}, {"anyOf": [CLOSED, {"$ref": "#"}]}),
        ({"prefixItems": [LISTED], "items": [LISTED]}, {"prefixItems": [CLOSED], "items": [CLOSED]}),
        ({"properties": {"items": LISTED}}, {"properties": {"items": CLOSED}, **NO_OTHERS}),
        ({"additionalProperties": LISTED}, {"additionalProperties": CLOSED}),
    ],
)
def test_objects_get_only_the_properties_that_are_listed(schema: Any, rewritten: Any) -> None:
    """Wherever schemas may be; a property may have the name of a keyword."""
    assert rewrite(schema, is_lenient=False) == rewritten


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},
        {"properties": {}},
        {**LISTED, "additionalProperties": {"type": "string"}},
        {**LISTED, "patternProperties": {"^x": {}}},
        {**LISTED, "unevaluatedProperties": {"type": "string"}},
        {**LISTED, "minProperties": 2},
        {**LISTED, "required": ["b"]},
        {**LISTED, "anyOf": [LISTED, {"properties": {"b": {}}}]},
        {**LISTED, "$ref": "#/$defs/x", "$defs": {"x": {"properties": {"b": {}}}}},
        {"required": ["b"], "oneOf": [{"anyOf": [LISTED]}]},
        {"items": LISTED, "contains": {"allOf": [LISTED]}, "allOf": [{"properties": {"b": {}}}]},
        {**LISTED, "if": LISTED, "then": {"required": ["b"]}},
        {"enum": [LISTED], "default": LISTED, "examples": [LISTED]},
    ],
)
def test_objects_stay_open_where_other_parts_may_speak_of_them(schema: dict[str, Any]) -> None:
    """Else nothing might match, or less than a client expects."""
    assert rewrite(schema, is_lenient=False) == schema


def test_keywords_that_say_nothing_are_dropped() -> None:
    """A strict schema with them is not refused; with other values they stay."""
    schema = {"uniqueItems": False, "minProperties": 0, "propertyNames": {"type": "string"}}
    assert rewrite({**schema, "unevaluatedItems": True}, is_lenient=False) == {}
    schema = {"uniqueItems": True, "minProperties": 1, "propertyNames": {"pattern": "a"}}
    assert rewrite(schema, is_lenient=False) == schema
    stays_open = {**LISTED, "unevaluatedProperties": True}
    assert rewrite(stays_open, is_lenient=False) == LISTED


@pytest.mark.parametrize("pattern", ["(?!x)a", "(?<=x)a", r"\bword", r"(a)\1", r"(?<n>a)\k<n>", r"a\\(?=b)"])
def test_unsupported_patterns_are_ignored_without_strict(pattern: str) -> None:
    """A strict schema is refused for them."""
    schema = {"properties": {"pattern": {"type": "string", "pattern": pattern}}}
    schema_grammar(schema, is_strict=False, place="schema")
    with pytest.raises(ValueError, match=r"^schema\.properties\.pattern: "):
        schema_grammar(schema, is_strict=True, place="schema")


@pytest.mark.parametrize("pattern", ["^[a-z]+$", r"\\b", r"\(\?!", "(?:a|b)", "(?i)a", r"\d{4}"])
def test_supported_patterns_stay(pattern: str) -> None:
    """Also where they contain the characters of unsupported ones."""
    assert rewrite({"pattern": pattern}, is_lenient=True) == {"pattern": pattern}


@pytest.mark.parametrize("entry", CORPUS, ids=lambda entry: entry["name"])
def test_schemas_of_clients_are_taken(entry: dict[str, Any]) -> None:
    """Those with unsupported keywords are refused only where they are strict, with the place."""
    schema_grammar(entry["schema"], is_strict=False, place="schema")
    if entry["name"] not in UNSUPPORTED:
        schema_grammar(entry["schema"], is_strict=True, place="schema")
        return
    with pytest.raises(ValueError, match=f"^schema.{UNSUPPORTED[entry['name']]}: "):
        schema_grammar(entry["schema"], is_strict=True, place="schema")
