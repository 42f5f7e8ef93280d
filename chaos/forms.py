"""Forms of answers beside plain text: constrained, with logprobs, several choices, tool calls.

Each names the fields of a body, and finds what is wrong with an answer. Pure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from spool import Result

REGEX = "[a-f]{3}-[0-9]{2,4}( (sea|river)){1,3}"
KINDS = ["sea", "river", "lamp"]
OBJECT = {
    "type": "object",
    "properties": {
        "kind": {"enum": KINDS},
        "name": {"type": "string", "pattern": "^[a-z]{2,8}$"},
        "sizes": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "maxItems": 3},
    },
    "required": ["kind", "name", "sizes"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "find", "parameters": OBJECT, "strict": True}}


@dataclass(frozen=True)
class Form:
    """A form; `is_valid` judges a text that ended by itself."""

    name: str
    fields: Mapping[str, Any]
    is_valid: Callable[[str], bool]


def is_object(text: str) -> bool:
    """Whether a text is JSON that matches OBJECT."""
    try:
        found = json.loads(text)
    except ValueError:
        return False
    if not isinstance(found, dict) or list(found) != ["kind", "name", "sizes"]:
        return False
    kind, name, sizes = found.values()
    is_list = isinstance(sizes, list) and len(sizes) <= 3
    are_sizes = is_list and all(type(size) is int and 0 <= size <= 99 for size in sizes)
    return kind in KINDS and bool(re.fullmatch("[a-z]{2,8}", str(name))) and are_sizes


def is_calls(text: str) -> bool:
    """Whether a text is calls of TOOL, in the form that a model without tools of its own is asked for."""
    calls = re.findall(r"<tool_call>\s*(.*?)\s*</tool_call>\s*", text, re.DOTALL)
    rest = re.sub(r"<tool_call>.*?</tool_call>", "", text, flags=re.DOTALL).strip()
    try:
        found = [json.loads(call) for call in calls]
    except ValueError:
        return False
    are_right = all(call["name"] == "find" and is_object(json.dumps(call["arguments"])) for call in found)
    return bool(found) and not rest and are_right


def is_regex(text: str) -> bool:
    """Whether a text matches REGEX."""
    return re.fullmatch(REGEX, text) is not None


DRAWN = {"temperature": 0.7, "seed": 5}
ENDING = {"frequency_penalty": 1.0}  # else the tiny model fills the whole answer with white space
SCHEMA = {
    "response_format": {"type": "json_schema", "json_schema": {"name": "thing", "schema": OBJECT}},
    **ENDING,
}
ONE_CALL = {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False}
FORMS = (
    Form("schema", SCHEMA, is_object),
    Form("regex", {"structured_outputs": {"regex": REGEX}}, is_regex),
    Form("tools", {**ONE_CALL, **DRAWN, **ENDING}, is_calls),
    Form("choices", {**SCHEMA, "n": 2, **DRAWN}, is_object),
    Form("logprobs", {"logprobs": True, "top_logprobs": 2}, lambda text: True),
    Form("choices with logprobs", {"n": 3, "logprobs": True, **DRAWN}, lambda text: True),
)
_BY_NAME = {form.name: form for form in FORMS}


def find_fault(name: str, result: Result) -> str:
    """Return what is wrong with a finished answer in this form; empty: nothing."""
    if not name:
        return ""
    form = _BY_NAME[name]
    if "logprobs" in form.fields:
        shown = [token.token_id for token in result.logprobs or ()]
        if shown != list(result.token_ids):
            return "its logprobs are not those of its tokens"
    if result.finish_reason == "stop" and not form.is_valid(result.text):
        return f"it does not match its form {name}: {result.text[:80]!r}"
    return ""
