"""Writes earlier turns in the forms that a chat template may accept: tool calls unchanged, or as text.

As text, calls are in the assistant's turn and results in a user's, in the format of Hermes and Qwen
templates. Adjacent user turns are joined to a result, because many templates require turns to alternate.
Knows messages in the form of templates; nothing of tokens.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prompts.tool_prompt import with_system_text, with_user_text

Turn = dict[str, Any]


def ways_to_write(
    turns: Sequence[Mapping[str, Any]], *, knows_tools: bool, described: str = "", call_id: str = ""
) -> Iterator[Sequence[Turn]]:
    """Yield the forms of a chat, the best first; the next is for a template that refuses the previous one.

    A turn with only tool calls has None for its content: some templates expect that, others fail. Arguments
    are objects, or texts where a template fails on those. Some accept only certain tool calls (one at a time,
    ids of nine characters).

    Args:
        knows_tools: whether the template writes tool calls.
        described: the tools as text, for a template that does not list them.
        call_id: the form of a call's id, with the fields `name` and `number`; empty: ids of any form.
    """
    for written in _histories(turns, knows_tools=knows_tools, call_id=call_id):
        if not described:
            yield written
        else:
            yield with_system_text(written, described)
            yield with_user_text(written, described)


def _histories(
    turns: Sequence[Mapping[str, Any]], *, knows_tools: bool, call_id: str
) -> Iterator[Sequence[Turn]]:
    given = [dict(turn) for turn in turns]
    if knows_tools and call_id:
        given = _with_call_ids(given, call_id)
    if not has_tools(given):
        yield given
    elif knows_tools:
        for turns in (given, _with_argument_texts(given)):
            yield turns
            yield [{**turn, "content": turn["content"] or ""} for turn in turns]
    if has_tools(given):
        yield without_tools(given)


def _with_argument_texts(turns: Sequence[Turn]) -> list[Turn]:
    """Return the same chat with the arguments of calls as JSON, which DeepSeek's templates join to texts."""
    return [
        {**turn, "tool_calls": [*map(_with_argument_text, turn["tool_calls"])]}
        if turn.get("tool_calls")
        else turn
        for turn in turns
    ]


def _with_argument_text(call: Mapping[str, Any]) -> Turn:
    function = call["function"]
    arguments = function["arguments"]
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return {**call, "function": {**function, "arguments": text}}


def _with_call_ids(turns: Sequence[Turn], form: str) -> list[Turn]:
    """Return the same chat with ids of calls that the model knows, in calls and results."""
    ids: dict[Any, str] = {}
    written = []
    for turn in turns:
        calls = []
        for call in turn.get("tool_calls") or ():
            made = form.format(name=call["function"]["name"], number=len(ids))
            ids[call.get("id", made)] = made
            calls.append({**call, "id": made})
        changed: Turn = {"tool_calls": calls} if calls else {}
        if turn["role"] == "tool" and turn.get("tool_call_id") in ids:
            changed = {"tool_call_id": ids[turn["tool_call_id"]]}
        written.append({**turn, **changed})
    return written


def with_thinking(turn: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the turn with its reasoning also under `thinking`, which gpt-oss templates read.

    They refuse turns that have both this and a text.
    """
    thoughts = turn.get("reasoning_content")
    return {"thinking": thoughts, **turn} if thoughts and not turn.get("content") else turn


def has_tools(turns: Sequence[Turn]) -> bool:
    """Whether a chat has tool calls or their results."""
    return any(turn["role"] == "tool" or turn.get("tool_calls") for turn in turns)


def without_tools(turns: Sequence[Turn]) -> list[Turn]:
    """Return the same chat with text only."""
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


def _as_text(turn: Turn) -> Turn:
    content = turn.get("content") or ""
    if turn["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{content}\n</tool_response>"}
    called = [json.dumps(call["function"], ensure_ascii=False) for call in turn.get("tool_calls") or ()]
    parts = [*filter(None, [content]), *(f"<tool_call>\n{call}\n</tool_call>" for call in called)]
    rest = {name: value for name, value in turn.items() if name != "tool_calls"}
    return {**rest, "content": "\n".join(parts)}
