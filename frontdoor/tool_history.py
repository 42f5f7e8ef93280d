"""Converts the tool calls of earlier turns, which clients send back, to the form that chat templates expect.

A call becomes {"id", "type": "function", "function": {"name", "arguments"}}. Arguments that are a JSON object
in a string become that object, because templates print it themselves. Knows one message at a time;
prompts/history.py writes calls for templates without tools.
"""

from collections.abc import Mapping
from typing import Any

from pydantic_core import from_json


def read_tool_calls(value: object) -> tuple[dict[str, Any], ...] | None:
    """Return the calls, or None.

    Raises:
        ValueError: not a list of calls.
    """
    if not value:
        return None
    if not isinstance(value, list):
        raise ValueError("must be a list of tool calls")
    return tuple(map(_read_call, value))


def _read_call(call: object) -> dict[str, Any]:
    if not isinstance(call, Mapping):
        raise ValueError("each tool call must be an object")
    called = call.get("function") or call.get("custom")
    if not isinstance(called, Mapping) or not isinstance(called.get("name"), str):
        raise ValueError("each tool call needs a function with a name")
    arguments = called.get("arguments", called.get("input"))
    read = {"type": "function", "function": {"name": called["name"], "arguments": _read_arguments(arguments)}}
    return {"id": call["id"], **read} if isinstance(call.get("id"), str) else read


def _read_arguments(arguments: object) -> dict[str, Any] | str:
    if arguments is None or arguments == "":
        return {}
    if isinstance(arguments, dict):
        return arguments
    if not isinstance(arguments, str):
        raise ValueError("the arguments of a tool call must be a string or an object")
    try:
        found = from_json(arguments)
    except ValueError:  # a model's broken call stays unchanged, as do half a character and very deep nesting
        return arguments
    return found if isinstance(found, dict) else arguments
