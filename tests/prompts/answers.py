"""Reads whole answers for the tests of formats."""

import json
from collections.abc import Sequence
from typing import Any

from prompts.answer_parts import AnswerPart, CallArguments, CallStart, Content, Reasoning, Tool
from prompts.answer_reader import AnswerReader
from prompts.tool_formats import ToolFormat


def read(reader: AnswerReader, pieces: Sequence[str]) -> list[AnswerPart]:
    """All parts of an answer, adjacent ones of one kind joined."""
    joined: list[AnswerPart] = []
    parts = [part for piece in pieces for part in reader.add(piece)]
    for part in [*parts, *reader.finish()]:
        last = joined[-1] if joined else None
        match last, part:
            case (Content(before), Content(text)):
                joined[-1] = Content(before + text)
            case (Reasoning(before), Reasoning(text)):
                joined[-1] = Reasoning(before + text)
            case (CallArguments(index, before), CallArguments(other, text)) if index == other:
                joined[-1] = CallArguments(index, before + text)
            case _:
                joined.append(part)
    assert all(isinstance(part, CallStart) or part.text for part in parts)
    return joined


def read_calls(form: ToolFormat, tools: Sequence[Tool], *pieces: str) -> list[tuple[str, Any]]:
    """The calls of an answer: name and arguments."""
    parts = read(AnswerReader(form, tools), pieces)
    names = {part.index: part.name for part in parts if isinstance(part, CallStart)}
    arguments = {part.index: part.text for part in parts if isinstance(part, CallArguments)}
    return [(name, json.loads(arguments[index])) for index, name in names.items()]


def content_of(form: ToolFormat, tools: Sequence[Tool], text: str) -> str:
    """The content of an answer that has nothing else."""
    (part,) = read(AnswerReader(form, tools), [text])
    assert isinstance(part, Content)
    return part.text
