"""From Anthropic's messages to the turns of a chat, as OpenAI's clients would send them.

Results of tools become turns of their own, in their order with the text beside them. System messages before
the first answer join the system prompt, which every chat template knows; later ones are marked text of the
user, because many templates refuse them, and a changed beginning would have to be read again. Adjacent
messages of the user are one turn. Knows no tools, and nothing of templates.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

Turn = dict[str, Any]
# Claude Code's first system block, for Anthropic's accounts. It differs between sessions with one prompt.
_BILLING = "x-anthropic-billing-header:"


def make_turns(system: Sequence[Any], messages: Sequence[Any]) -> list[Turn]:
    """Return the turns.

    Args:
        system: text blocks.
        messages: as in `anthropic_body.Message`.
    """
    instructions = [block for block in system if not block.text.startswith(_BILLING)]
    turns: list[Turn] = []
    for message in messages:
        if message.role == "assistant":
            turns.append(_answer(message.content))
        elif message.role == "user":
            for turn in _questions(message.content):
                _add(turns, turn)
        elif any(turn["role"] == "assistant" for turn in turns):
            text = f"<system>\n{_text(message.content)}\n</system>"
            _add(turns, {"role": "user", "content": text})
        else:
            instructions += message.content
    return [{"role": "system", "content": _text(instructions)}, *turns] if instructions else turns


def _questions(blocks: Iterable[Any]) -> Iterator[Turn]:
    for block in blocks:
        if block.type == "text":
            yield {"role": "user", "content": block.text}
        else:
            text = _text(block.content or ())
            said = f"Error: {text}" if block.is_error else text
            yield {"role": "tool", "tool_call_id": block.tool_use_id, "content": said}


def _answer(blocks: Sequence[Any]) -> Turn:
    texts = [block.text for block in blocks if block.type == "text"]
    thoughts = [block.thinking for block in blocks if block.type == "thinking"]
    calls = [
        {"id": block.id, "type": "function", "function": {"name": block.name, "arguments": block.input}}
        for block in blocks
        if block.type == "tool_use"
    ]
    return {
        "role": "assistant",
        "content": "".join(texts) or None,
        "reasoning_content": "".join(thoughts) or None,
        "tool_calls": calls or None,
    }


def _add(turns: list[Turn], turn: Turn) -> None:
    if turns and turns[-1]["role"] == turn["role"] == "user":
        turns[-1]["content"] += "\n" + turn["content"]
    else:
        turns.append(turn)


def _text(blocks: Iterable[Any]) -> str:
    return "\n".join(block.text for block in blocks)
