"""Describes tools as text, for models whose chat template knows none, in the words of Qwen's templates."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

_BEFORE = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
"""
_AFTER = """
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call>"""  # noqa: E501 - one line, as models have learned it


def describe_tools(tools: Sequence[Mapping[str, Any]]) -> str:
    """Return the text for the system turn.

    Args:
        tools: in OpenAI's form.
    """
    return _BEFORE + "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools) + _AFTER


def with_system_text(turns: Sequence[Mapping[str, Any]], text: str) -> list[dict[str, Any]]:
    """Return the chat with a text at the end of its first system turn."""
    first, *rest = [dict(turn) for turn in turns] or [{"role": "system"}]
    if first["role"] != "system":
        return [{"role": "system", "content": text}, first, *rest]
    return [{**first, "content": _joined(first.get("content"), text)}, *rest]


def with_user_text(turns: Sequence[Mapping[str, Any]], text: str) -> list[dict[str, Any]]:
    """Return the chat without system turns: their texts, and this one, begin the first user turn."""
    texts = [turn.get("content") for turn in turns if turn["role"] == "system"]
    rest = [dict(turn) for turn in turns if turn["role"] != "system"]
    at = next((place for place, turn in enumerate(rest) if turn["role"] == "user"), None)
    if at is None:
        return [{"role": "user", "content": _joined(*texts, text)}, *rest]
    rest[at]["content"] = _joined(*texts, text, rest[at].get("content"))
    return rest


def _joined(*texts: Any) -> str:
    return "\n\n".join(filter(None, texts))
