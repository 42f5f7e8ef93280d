"""The forms in which model families write tool calls. Data and parsing; knows no tokens and no grammar."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prompts.answer_parts import Tool


@dataclass(frozen=True)
class Call:
    """A whole tool call; arguments are the text of a JSON object."""

    name: str
    arguments: str


@dataclass(frozen=True)
class ToolFormat:
    """One form. A call is `opening`, its body, `closing`.

    `header`: the body up to the opening brace of the arguments, with the name as its first group.
    """

    name: str
    opening: str
    closing: str
    header: re.Pattern[str] | None

    def is_refuted(self, body: str) -> bool:
        """Whether a body that begins like this can be no call."""
        begun = body.lstrip()
        return bool(begun) and not begun.startswith("{")

    def parse(self, body: str, tools: Sequence[Tool]) -> list[Call]:
        """Return the calls of a whole body; none: it is no call."""
        try:
            found = json.loads(body)
        except (ValueError, RecursionError):
            return []
        call = _read_call(found)
        return [] if call is None else [call]

    def around(self, name: str) -> tuple[str, str]:
        """Return the texts before and after the arguments of a call, as the grammar demands them."""
        written = json.dumps(name, ensure_ascii=False)
        return f'{self.opening}\n{{"name": {written}, "arguments": ', f"}}\n{self.closing}"


def _read_call(found: Any) -> Call | None:
    if not isinstance(found, dict) or not isinstance(found.get("name"), str):
        return None
    arguments = found.get("arguments", found.get("parameters", {}))
    if isinstance(arguments, str):  # JSON in a string
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return None
    if not isinstance(arguments, dict):
        return None
    return Call(found["name"], json.dumps(arguments, ensure_ascii=False))


_JSON_HEADER = re.compile(r'\s*\{\s*"name"\s*:\s*"([^"\\<>]+)"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)')

GENERIC = ToolFormat("generic", "<tool_call>", "</tool_call>", _JSON_HEADER)


def find_tool_format(literals: str) -> ToolFormat:
    """Return the format of a template that knows tools, by the texts that it writes."""
    return GENERIC
