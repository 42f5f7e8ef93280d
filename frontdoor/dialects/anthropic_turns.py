"""From Anthropic's messages to the turns of a chat, as OpenAI's clients would send them.

Results of tools become turns of their own, in their order with the text beside them. System messages before
the first answer join the system prompt, which every chat template knows; later ones are marked text of the
user, because many templates refuse them, and a changed beginning would have to be read again. Adjacent
messages of the user are one turn. A reference to a deferred tool becomes its description, in its place, so
that the beginning of the prompt stays as it was. Knows nothing of templates.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from frontdoor.dialects.anthropic_blocks import (
    Block,
    FileBlock,
    MessageParam,
    TextBlock,
    ThinkingBlock,
    ToolReferenceBlock,
    ToolResultBlock,
    ToolUseBlock,
)

Turn = dict[str, Any]
Tools = Mapping[str, Mapping[str, Any]]
# Claude Code's first system block, for Anthropic's accounts. It differs between sessions with one prompt.
_BILLING = "x-anthropic-billing-header:"


def make_turns(
    system: Sequence[TextBlock | FileBlock], messages: Sequence[MessageParam], deferred: Tools
) -> list[Turn]:
    """Return the turns.

    Args:
        deferred: tools that are not listed, by name.
    """
    instructions = [text for text in _texts(system) if not text.startswith(_BILLING)]
    turns: list[Turn] = []
    for message in messages:
        if message.role == "assistant":
            turns.append(_answer(message.content))
        elif message.role == "user":
            for turn in _questions(message.content, deferred):
                _add(turns, turn)
        elif any(turn["role"] == "assistant" for turn in turns):
            text = "\n".join(("<system>", *_texts(message.content), "</system>"))
            _add(turns, {"role": "user", "content": text})
        else:
            instructions += _texts(message.content)
    return [{"role": "system", "content": "\n".join(instructions)}, *turns] if instructions else turns


def _questions(blocks: Iterable[Block], deferred: Tools) -> Iterator[Turn]:
    for block in blocks:
        match block:
            case TextBlock(text=text):
                yield {"role": "user", "content": text}
            case ToolResultBlock():
                result = "\n".join(_result(part, deferred) for part in block.content or ())
                said = f"Error: {result}" if block.is_error else result
                yield {"role": "tool", "tool_call_id": block.tool_use_id, "content": said}


def _result(part: TextBlock | ToolReferenceBlock | FileBlock, deferred: Tools) -> str:
    if isinstance(part, ToolReferenceBlock):
        found = deferred.get(part.tool_name)
        return part.tool_name if found is None else json.dumps(found, ensure_ascii=False)
    return "".join(_texts([part]))


def _answer(blocks: Sequence[Block]) -> Turn:
    thoughts = [block.thinking for block in blocks if isinstance(block, ThinkingBlock)]
    calls = [
        {"id": block.id, "type": "function", "function": {"name": block.name, "arguments": block.input}}
        for block in blocks
        if isinstance(block, ToolUseBlock)
    ]
    return {
        "role": "assistant",
        "content": "".join(_texts(blocks)) or None,
        "reasoning_content": "".join(thoughts) or None,
        "tool_calls": calls or None,
    }


def _add(turns: list[Turn], turn: Turn) -> None:
    if turns and turns[-1]["role"] == turn["role"] == "user":
        turns[-1]["content"] += "\n" + turn["content"]
    else:
        turns.append(turn)


def _texts(blocks: Iterable[Block | ToolReferenceBlock]) -> list[str]:
    return [block.text for block in blocks if isinstance(block, TextBlock)]
