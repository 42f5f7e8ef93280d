"""From `response_format` and `structured_outputs` to the grammar of an answer, checked by llguidance.

A schema without `strict` is kept as far as llguidance can: what it does not support is ignored
(docs/structured-output.md lists it). A strict one is refused then, with the place. Knows no tools and no
tokenizer.
"""

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

from config.deep_stack import LibraryPanic, run_deep
from frontdoor.http.errors import InvalidRequest
from prompts.grammars import json_object_grammar, json_schema_grammar, lark_grammar, regex_grammar
from prompts.json_schemas import parts_of

MAX_GRAMMAR_BYTES = 2**20
MAX_PLACE_CHECKS = 200
MAX_PLACE_LENGTH = 200  # characters; the reason comes behind it
MAX_REASON_LENGTH = 300
# What each of `structured_outputs` takes.
_WANTED = {
    "json": "a JSON schema",
    "json_object": "true",
    "regex": "a string",
    "choice": "a list of strings, not empty",
    "grammar": "a string",
}


def content_grammar(fields: Mapping[str, Any]) -> str | None:
    """Return the grammar that a body's fields ask for, or None. May take long.

    Args:
        fields: `response_format`, `structured_outputs`, and vLLM's older `guided_…`, as the client sent them.

    Raises:
        InvalidRequest: a constraint is refused, or there are two.
    """
    found: list[tuple[str, str]] = []
    for name, value in fields.items():
        try:
            if name == "response_format":
                grammar = read_response_format(value)
            elif name == "structured_outputs":
                grammar = read_structured_outputs(value)
            else:
                grammar = read_structured_outputs({name.removeprefix("guided_"): value})
        except ValueError as error:
            raise InvalidRequest(f"'{name}': {error}", param=name) from error
        if grammar is not None:
            found.append((name, grammar))
    if len(found) > 1:
        raise InvalidRequest(f"'{found[0][0]}' and '{found[1][0]}' exclude each other", param=found[1][0])
    return found[0][1] if found else None


def read_response_format(value: object) -> str | None:
    """Return the grammar of OpenAI's `response_format`, or None for any text.

    Raises:
        ValueError: another form, or a schema that is refused; the message says where.
    """
    asked: Mapping[str, Any] = value if isinstance(value, Mapping) else {}
    kind = asked.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return _read_json_object(asked)
    described = asked.get("json_schema") if kind == "json_schema" else None
    if not isinstance(described, Mapping):
        raise ValueError('must have the type "text", "json_object" or "json_schema" (with "json_schema")')
    is_strict = described.get("strict") is True
    return _read_schema(described.get("schema", {}), is_strict=is_strict, place="json_schema.schema")


def _read_json_object(asked: Mapping[str, Any]) -> str:
    """Return the grammar of an object, by a schema where there is one, as llama.cpp does."""
    schema = asked.get("schema")
    return json_object_grammar() if schema is None else _read_schema(schema, is_strict=False, place="schema")


def _read_schema(schema: object, *, is_strict: bool, place: str) -> str:
    if not isinstance(schema, bool | Mapping):
        raise ValueError(f"{place} must be a JSON schema")
    return schema_grammar(schema, is_strict=is_strict, place=place)


def read_structured_outputs(value: object) -> str | None:
    """Return the grammar of vLLM's `structured_outputs`: one of json, json_object, regex, choice, grammar.

    Raises:
        ValueError: another form, or a grammar that is refused.
    """
    asked = (
        {name: given for name, given in value.items() if given is not None}
        if isinstance(value, Mapping)
        else {}
    )
    if len(asked) != 1:
        raise ValueError(f"must have exactly one of {', '.join(_WANTED)}")
    ((name, given),) = asked.items()
    if name == "json":
        return _read_schema(_parse(given) if isinstance(given, str) else given, is_strict=True, place="json")
    if name == "json_object" and given is True:
        return json_object_grammar()
    if (
        name == "choice"
        and isinstance(given, list)
        and given
        and all(isinstance(each, str) for each in given)
    ):
        return _checked(lark_grammar("start: " + " | ".join(json.dumps(text) for text in given)), "choice")
    if name == "regex" and isinstance(given, str):
        return _checked(regex_grammar(given), "regex")
    if name == "grammar" and isinstance(given, str):
        return _checked(lark_grammar(given), "grammar")
    if name in _WANTED:
        raise ValueError(f"{name} must be {_WANTED[name]}")
    raise ValueError(f"{name[:20]} is no such constraint: use one of {', '.join(_WANTED)}")


def schema_grammar(schema: Mapping[str, Any] | bool, *, is_strict: bool, place: str) -> str:
    """Return the grammar of a JSON schema.

    Raises:
        ValueError: llguidance refuses it; the message names the place below `place`.
    """
    whole = {} if schema is True else {"enum": []} if schema is False else dict(schema)
    grammar = json_schema_grammar(whole, is_lenient=not is_strict)
    refusal = find_refusal(grammar, is_content=True)
    if refusal is not None:
        whole_place = place + _find_place(whole, is_lenient=not is_strict)
        raise ValueError(f"{_shorten(whole_place)}: {refusal}")
    return grammar


def check_grammar(grammar: str, param: str) -> None:
    """Raise InvalidRequest where llguidance refuses a grammar."""
    refusal = find_refusal(grammar)
    if refusal is not None:
        raise InvalidRequest(f"'{param}': {refusal}", param=param)


def find_refusal(grammar: str, *, is_content: bool = False) -> str | None:
    """Return why llguidance refuses a grammar, in one line; None: it takes it.

    Args:
        is_content: of text without tokens of the model's own; one that no text begins is refused, too.
    """
    from llguidance import LLMatcher  # only requests with a grammar need it

    if len(grammar) > MAX_GRAMMAR_BYTES:
        return f"the grammar is larger than {MAX_GRAMMAR_BYTES} bytes"
    try:
        is_error, messages = run_deep(partial(LLMatcher.validate_grammar_with_warnings, grammar))
        if not is_error and is_content and run_deep(partial(_is_dead, grammar)):
            return "nothing can match it"
    except LibraryPanic as error:
        is_error, messages = True, [f"llguidance cannot read it: {error}"]
    return " ".join(messages[0].split())[:MAX_REASON_LENGTH] if is_error else None


def _is_dead(grammar: str) -> bool:
    """Whether no text begins an answer by a valid grammar, such as that of {"$ref": "#"}."""
    from llguidance import LLMatcher, LLTokenizer

    matcher = LLMatcher(LLTokenizer("byte"), grammar, log_level=0)
    if matcher.is_error():  # it may name tokens of the model
        return False
    matcher.compute_bitmask()
    return matcher.get_error().startswith("NoExtensionBias")


def _checked(grammar: str, place: str) -> str:
    refusal = find_refusal(grammar, is_content=True)
    if refusal is not None:
        raise ValueError(f"{place}: {refusal}")
    return grammar


def _shorten(place: str) -> str:
    """Return a long place without its middle."""
    half = MAX_PLACE_LENGTH // 2
    return place if len(place) <= MAX_PLACE_LENGTH else f"{place[:half]}…{place[-half:]}"


def _parse(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("json must be a JSON schema") from None


def _find_place(schema: Mapping[str, Any], *, is_lenient: bool) -> str:
    """Return the path of the innermost part that is refused by itself; empty: the schema as a whole."""
    shared = {name: schema[name] for name in ("$defs", "definitions") if name in schema}
    place, parts = "", parts_of(schema)
    for _ in range(MAX_PLACE_CHECKS):
        step, part = next(parts, (None, schema))
        if step is None:
            break
        grammar = json_schema_grammar({**shared, **part}, is_lenient=is_lenient)
        if find_refusal(grammar, is_content=True) is not None:
            place, parts = f"{place}.{step}", parts_of(part)
    return place
