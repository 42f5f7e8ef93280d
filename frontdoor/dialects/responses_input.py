"""Converts the input of OpenAI's Responses API, a list of items, to the messages of a chat.

An answer of this API is several items: reasoning, texts and calls. Those of one answer become one turn, as
frontdoor/kept_turns.py knows it. Adjacent messages of the system (with the instructions) become one turn, and
so do those of a user, because many chat templates require turns to alternate. Members without a meaning here
(ids, states, annotations, encrypted reasoning) are not read. Knows no tools.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from frontdoor.http.errors import InvalidRequest

Turn = dict[str, Any]
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
# The parts that are text, and the member that holds it.
_PARTS = {
    "input_text": "text",
    "output_text": "text",
    "text": "text",
    "reasoning_text": "text",
    "summary_text": "text",
    "refusal": "refusal",
}
_ITEM_ID = re.compile(r"[a-z]+_([0-9a-f]{32})_[0-9]+")
_NO_ITEM = (
    "there is no such item, or its answer was removed (RESULT_RETENTION_HOURS, RESULT_RETENTION_MB): "
    "send the item itself"
)


def read_input(given: str | Sequence[Any], instructions: str | None) -> list[Turn]:
    """Return the messages of a chat.

    Raises:
        InvalidRequest: an item is wrong or not supported; the message names its place.
    """
    turns: list[Turn] = [{"role": "system", "content": [instructions]}] if instructions else []
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    for number, item in enumerate(items):
        _add(turns, _read_item(item, f"input[{number}]"))
    return [_joined(turn) for turn in turns]


def resolve_references(items: Sequence[Any], find: Callable[[str], Mapping[str, Any]]) -> list[Any]:
    """Return the items, with those that references name; references to unknown items stay.

    Args:
        find: returns the items of the answer to a request, by their ids.
    """
    answers: dict[str, Mapping[str, Any]] = {}
    resolved = []
    for item in items:
        match = _ITEM_ID.fullmatch(str(item.get("id"))) if is_reference(item) else None
        if match is not None and match[1] not in answers:
            answers[match[1]] = find(match[1])
        resolved.append(item if match is None else answers[match[1]].get(match[0], item))
    return resolved


def is_reference(item: object) -> bool:
    return isinstance(item, Mapping) and item.get("type") == "item_reference"


def _add(turns: list[Turn], turn: Turn) -> None:
    """Add a turn, or its texts and calls to the last one; texts are lists until all turns are read."""
    last: Turn = turns[-1] if turns else {"role": None}
    has_texts = turn["role"] == "assistant" and "content" in turn and "content" in last
    is_another_answer = has_texts and "tool_calls" not in last  # text behind a call belongs to it
    if turn["role"] != last["role"] or turn["role"] == "tool" or is_another_answer:
        turns.append(turn)
    else:
        for name in turn.keys() - {"role"}:
            last.setdefault(name, []).extend(turn[name])


def _joined(turn: Turn) -> Turn:
    between = "" if turn["role"] == "assistant" else "\n\n"
    texts: Turn = {
        name: between.join(turn[name]) for name in ("content", "reasoning_content") if name in turn
    }
    return {**turn, **texts}


def _read_item(item: object, place: str) -> Turn:
    if not isinstance(item, Mapping):
        raise invalid(place, "must be an object")
    kind = item.get("type") or "message"
    read = _READERS.get(kind) if isinstance(kind, str) else None
    if read is None:
        raise invalid(f"{place}.type", f"items of the type {str(kind)[:40]!r} are not supported")
    return read(item, place)


def _read_message(item: Mapping[str, Any], place: str) -> Turn:
    given = item.get("role")
    role = _ROLES.get(given) if isinstance(given, str) else None
    if role is None:
        raise invalid(f"{place}.role", f"must be one of {', '.join(_ROLES)}")
    content = item.get("content")
    if role == "assistant" and content in (None, "", []):
        return {"role": role}
    return {"role": role, "content": [_read_text(content, f"{place}.content")]}


def _read_call(item: Mapping[str, Any], place: str) -> Turn:
    is_custom = item["type"] == "custom_tool_call"
    given = _read_string(item, "input" if is_custom else "arguments", place)
    call = {
        "id": _read_string(item, "call_id", place),
        "type": "function",
        "function": {
            "name": _read_string(item, "name", place),
            "arguments": write_custom_arguments(given) if is_custom else given,
        },
    }
    return {"role": "assistant", "tool_calls": [call]}


def _read_result(item: Mapping[str, Any], place: str) -> Turn:
    text = _read_text(item.get("output"), f"{place}.output")
    return {"role": "tool", "tool_call_id": _read_string(item, "call_id", place), "content": [text]}


def _read_reasoning(item: Mapping[str, Any], place: str) -> Turn:
    name = "content" if item.get("content") else "summary"
    text = _read_text(item.get(name) or "", f"{place}.{name}", between="\n\n")
    return {"role": "assistant", "reasoning_content": [text]} if text else {"role": "assistant"}


def _read_reference(_item: Mapping[str, Any], place: str) -> Turn:
    raise invalid(place, _NO_ITEM)


_READERS: Mapping[str, Callable[[Mapping[str, Any], str], Turn]] = {
    "message": _read_message,
    "function_call": _read_call,
    "custom_tool_call": _read_call,
    "function_call_output": _read_result,
    "custom_tool_call_output": _read_result,
    "reasoning": _read_reasoning,
    "item_reference": _read_reference,
}


def write_custom_arguments(text: str) -> str:
    """Return the arguments of the function that stands for a custom tool."""
    return json.dumps({"input": text}, ensure_ascii=False)


def read_custom_input(arguments: str) -> str:
    """Return the input of a custom tool from what the model wrote; broken arguments stay as they are."""
    try:
        return str(json.loads(arguments)["input"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return arguments


def _read_text(value: object, place: str, *, between: str = "") -> str:
    """Return a string, or the texts of a list of parts."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise invalid(place, "must be a string or a list of text parts")
    return between.join(_read_part(part, f"{place}[{number}]") for number, part in enumerate(value))


def _read_part(part: object, place: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else None
    member = _PARTS.get(kind) if isinstance(kind, str) else None
    if member is None:
        raise invalid(
            place, f"parts of the type {str(kind)[:40]!r} are not supported: this server reads text"
        )
    text = part.get(member) if isinstance(part, Mapping) else None
    if not isinstance(text, str):
        raise invalid(f"{place}.{member}", "must be a string")
    return text


def _read_string(item: Mapping[str, Any], name: str, place: str) -> str:
    found = item.get(name)
    if not isinstance(found, str):
        raise invalid(f"{place}.{name}", "must be a string")
    return found


def invalid(place: str, reason: str, *, code: str | None = None) -> InvalidRequest:
    """Make the error of a field."""
    return InvalidRequest(f"'{place}': {reason}", param=place, code=code)
