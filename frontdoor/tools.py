"""The tools of a chat as clients send them, and what a request asks of them.

Knows OpenAI's form of tools; nothing of how a model writes calls (prompts/formats.py).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from frontdoor.constraints import schema_grammar
from frontdoor.http.errors import InvalidRequest
from prompts.formats import Tool

MAX_TOOLS = 512
MAX_NAME_LENGTH = 256
CHOICES = ("none", "auto", "required")


@dataclass(frozen=True)
class ToolUse:
    """The tools that an answer may call. `choice`: auto, required, or the name of the tool to call."""

    tools: tuple[Tool, ...] = ()
    choice: str = "auto"
    is_parallel: bool = True


def read_tools(value: object) -> tuple[Tool, ...]:
    """Return the tools of a body.

    Raises:
        ValueError: no list of functions, or two of one name.
    """
    if not isinstance(value, list) or len(value) > MAX_TOOLS:
        raise ValueError(f"must be a list of up to {MAX_TOOLS} tools")
    tools = tuple(_read_tool(tool, f"[{number}]") for number, tool in enumerate(value))
    counts = Counter(tool.name for tool in tools)
    twice = next((name for name, count in counts.items() if count > 1), None)
    if twice is not None:
        raise ValueError(f"two tools have the name {twice[:MAX_NAME_LENGTH]!r}")
    return tools


def _read_tool(tool: object, place: str) -> Tool:
    function = tool.get("function") if isinstance(tool, dict) and tool.get("type") == "function" else None
    if not isinstance(function, dict):
        raise ValueError(f'{place} must be {{"type": "function", "function": {{"name": …}}}}')
    name, description = function.get("name"), function.get("description")
    parameters, is_strict = function.get("parameters"), function.get("strict")
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME_LENGTH or not name.isprintable():
        raise ValueError(f"{place}.function.name must have 1 to {MAX_NAME_LENGTH} printable characters")
    if not isinstance(description, str | None):
        raise ValueError(f"{place}.function.description must be a text")
    if not isinstance(parameters, dict | None):
        raise ValueError(f"{place}.function.parameters must be a JSON schema")
    if not isinstance(is_strict, bool | None):
        raise ValueError(f"{place}.function.strict must be true or false")
    return Tool(name, description or "", parameters or None, bool(is_strict))


def check_tool_schemas(tools: Sequence[Tool]) -> None:
    """Raise InvalidRequest for the first tool whose parameters cannot be constrained."""
    for number, tool in enumerate(tools):
        place = f"[{number}].function.parameters"
        try:
            schema_grammar(tool.parameters or {}, is_strict=tool.is_strict, place=place)
        except ValueError as error:
            raise InvalidRequest(f"'tools': {error} (the tool {tool.name!r})", param="tools") from error


def read_tool_choice(value: object) -> str | tuple[str]:
    """Return none, auto or required, or a tuple of the tool's name.

    Raises:
        ValueError: neither of them.
    """
    if value in CHOICES:
        return str(value)
    function = value.get("function") if isinstance(value, dict) and value.get("type") == "function" else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str):
        raise ValueError(
            'must be "none", "auto", "required", or {"type": "function", "function": {"name": …}}'
        )
    return (name,)


def make_tool_use(
    tools: Sequence[Tool] | None, choice: str | tuple[str] | None, *, is_parallel: bool | None
) -> ToolUse:
    """Combine the fields of a body. With the choice none the model does not see the tools.

    Raises:
        InvalidRequest: a call is demanded, and no such tool exists.
    """
    offered = tuple(tools or ())
    if isinstance(choice, tuple):
        if choice[0] not in [tool.name for tool in offered]:
            raise InvalidRequest(f"'tools' has no function {choice[0]!r}", param="tool_choice")
        return ToolUse(offered, choice[0], is_parallel=False)
    if choice == "required" and not offered:
        raise InvalidRequest("'tool_choice' demands a call, and 'tools' is empty", param="tool_choice")
    if choice == "none":
        return ToolUse()
    return ToolUse(offered, choice or "auto", is_parallel=is_parallel is not False)
