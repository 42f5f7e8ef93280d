"""Describes tools as text, for models whose chat template knows none, in the words of Qwen's templates."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

_TEXT = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{tools}
</tools>

For each function call, {form}:
{example}"""
_JSON_FORM = "return a json object with function name and arguments within <tool_call></tool_call> XML tags"
_OTHER_FORM = "write the call in exactly this form"


def describe_tools(tools: Sequence[Mapping[str, Any]], example: str) -> str:
    """Return the text for the system turn.

    Args:
        tools: in OpenAI's form.
        example: a call in the model's format.
    """
    written = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    form = _JSON_FORM if example.startswith("<tool_call>\n{") else _OTHER_FORM
    return _TEXT.format(tools=written, form=form, example=example)


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
