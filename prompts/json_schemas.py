"""Rewrites JSON schemas so that small models come to an end; knows their keywords, and no grammar.

The rewritten schema allows only what the client's schema allows. One exception: where a client does not
insist, patterns that llguidance does not support are left out.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

_NESTED = ("items", "additionalItems", "additionalProperties")
_LISTED = ("anyOf", "oneOf", "allOf", "prefixItems", "items")
_NAMED = ("properties", "patternProperties", "$defs", "definitions")
# Keywords that apply another schema to the same value, and those that say what members an object has.
_IN_PLACE = frozenset({"$ref", "anyOf", "oneOf"})
_ALWAYS_BESIDE = frozenset({"allOf", "if", "dependentSchemas", "dependencies", "$dynamicRef"})
_OF_OTHERS = frozenset(
    {"patternProperties", "additionalProperties", "unevaluatedProperties", "minProperties"}
)
_OF_MEMBERS = _OF_OTHERS | {"properties", "required"}
# What these keywords say where they say nothing; llguidance 1.9 refuses them all the same.
_NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "dependencies": ({},),
    "dependentRequired": ({},),
    "dependentSchemas": ({},),
    "minContains": (0,),
    "minProperties": (0,),
    "propertyNames": (True, {}, {"type": "string"}),
    "unevaluatedItems": (True, {}),
    "unevaluatedProperties": (True, {}),
    "uniqueItems": (False,),
}
# No look-around, no back-reference, no edge of a word.
_SUPPORTED_PATTERN = re.compile(r"([^\\(]|\\[^1-9bBk]|\((?!\?<?[=!]))*", re.DOTALL)


def rewrite(schema: Mapping[str, Any], *, is_lenient: bool) -> dict[str, Any]:
    """Return a schema whose answers are among those of `schema`.

    Keywords that say nothing are dropped. An object whose properties are listed gets no others, unless the
    schema speaks of others, or several of its parts apply to one object.

    Args:
        is_lenient: leave out patterns that are not supported, too.
    """
    whole: dict[str, Any] = json.loads(json.dumps(schema))
    parts = list(_all_parts(whole))
    is_divided = any(map(_is_divided, parts))
    for part in parts:
        if not is_divided and _can_close(part):
            part["additionalProperties"] = False
        for keyword in [keyword for keyword, values in _NEUTRAL.items() if part.get(keyword) in values]:
            del part[keyword]
        if is_lenient and not _SUPPORTED_PATTERN.fullmatch(str(part.get("pattern", ""))):
            del part["pattern"]
    return whole


def parts_of(schema: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the schemas directly inside a schema, each with its path."""
    for name in _NESTED:
        yield from _schemas({name: schema.get(name)})
    for name in _LISTED:
        listed = schema.get(name)
        if isinstance(listed, list):
            yield from _schemas({f"{name}[{number}]": part for number, part in enumerate(listed)})
    for name in _NAMED:
        named = schema.get(name)
        if isinstance(named, Mapping):
            yield from _schemas({f"{name}.{key}": part for key, part in named.items()})


def _schemas(parts: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    return ((path, part) for path, part in parts.items() if isinstance(part, dict))


def _all_parts(whole: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a schema and all schemas inside it."""
    left = [whole]
    while left:
        part = left.pop()
        yield part
        left += (inner for _, inner in parts_of(part))


def _is_divided(part: Mapping[str, Any]) -> bool:
    """Whether several schemas apply to one object, each with some of its properties."""
    num_places = sum(name in part for name in _IN_PLACE) + bool(_OF_MEMBERS.intersection(part))
    return num_places > 1 or bool(_ALWAYS_BESIDE.intersection(part))


def _can_close(part: Mapping[str, Any]) -> bool:
    listed, required = part.get("properties"), part.get("required", [])
    if not isinstance(listed, dict) or not listed or (_IN_PLACE | _OF_OTHERS).intersection(part):
        return False
    return isinstance(required, list) and all(str(name) in listed for name in required)
