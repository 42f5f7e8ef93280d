"""Earlier tool calls for a chat template that knows none: calls and results as text that a model can read.

Calls stand in the assistant's turn and results in a user's, in the words in which Hermes and Qwen templates
write them; a user's turn that touches one is joined to it, as many templates want turns to alternate. Knows
messages as templates see them; nothing of tokens.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

Turn = dict[str, Any]


def without_tools(turns: Sequence[Mapping[str, Any]]) -> list[Turn]:
    """Return the same chat in turns of text alone."""
    plain: list[Turn] = []
    was_result = False
    for turn in turns:
        is_result, shown = turn["role"] == "tool", _as_text(turn)
        is_joined = plain and (is_result or was_result) and plain[-1]["role"] == shown["role"] == "user"
        if is_joined:
            plain[-1] = {**plain[-1], "content": f"{plain[-1]['content']}\n{shown['content']}"}
        else:
            plain.append(shown)
        was_result = is_result
    return plain


def _as_text(turn: Mapping[str, Any]) -> Turn:
    content = turn.get("content") or ""
    if turn["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{content}\n</tool_response>"}
    called = [json.dumps(call["function"], ensure_ascii=False) for call in turn.get("tool_calls") or ()]
    parts = [*filter(None, [content]), *(f"<tool_call>\n{call}\n</tool_call>" for call in called)]
    rest = {name: value for name, value in turn.items() if name != "tool_calls"}
    return {**rest, "content": "\n".join(parts)}
