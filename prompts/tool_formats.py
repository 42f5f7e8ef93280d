"""The forms in which model families write tool calls, and how to find a model's.

A call is `opening`, its body, `closing`. In most forms the body is a header with the tool's name, the
arguments as a JSON object, and a few characters; the reader passes those arguments on as they come. In the
others, every argument has tags of its own, and a call is read as a whole. prompts/tool_families.py lists the
formats. Knows no tokens and no grammar.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from prompts.answer_parts import Tool

NAME = "\0name\0"  # stands for the tool's name, or an argument's, in the texts of a format
NUMBER = "\0number\0"  # stands for any number
IS_TEXT = "\0text\0"  # stands for true before an argument that is text, for false before one that is JSON

_KEYS = ("name", "arguments", "parameters", "id", "type", "function")
_FIRST_KEY = re.compile(r'\s*\{\s*"([^"]*)("?)')
_ONLY_BRACE = re.compile(r"\s*(?:\{\s*)?")
# What mlx-lm's parsers and the standard library raise for a text that is no call.
NO_CALL = (ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError, ValueError)


@dataclass(frozen=True)
class Call:
    """A whole tool call; arguments are the text of a JSON object."""

    name: str
    arguments: str


Parse = Callable[[str, Sequence[Tool]], list[Call]]


@dataclass(frozen=True)
class ToolFormat:
    """One form. All texts may have NAME, and those for grammars NUMBER.

    `before` and `after`: the texts around the arguments, from the opening to the closing tag. `begins`: how
    every body begins. `header`: the body up to the opening brace of the arguments, with the name as its first
    group. `parse` reads a body without such a header. `argument`: the texts around each argument, if they are
    not JSON. `section`: the texts around all calls; `between`: the text between them (None: white space).
    `other_openings` begin a call as well; `dropped` are tags without a meaning. `answer`: the tag before an
    answer without calls. `call_id`: the form of ids that the model knows. `is_bare`: a call may begin an
    answer without its opening tag.
    """

    name: str
    opening: str
    closing: str
    before: str
    after: str
    begins: str = ""
    header: re.Pattern[str] | None = None
    parse: Parse = lambda body, tools: []
    argument: tuple[str, str] | None = None
    section: tuple[str, str] = ("", "")
    between: str | None = None
    other_openings: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    answer: str = ""
    call_id: str = ""
    is_bare: bool = False

    @property
    def tail(self) -> str:
        """The characters between the arguments and the closing tag, without white space."""
        return self.after.removesuffix(self.closing).strip()

    @property
    def texts(self) -> tuple[str, ...]:
        """All texts that the format may write, for their special tokens."""
        return (self.before, self.after, *self.section, *(self.argument or ()), *self.dropped, self.answer)

    def is_refuted(self, body: str) -> bool:
        """Whether a body that begins like this can be no call."""
        begun = body.lstrip()
        if not begun.startswith(self.begins):
            return not self.begins.startswith(begun)
        return self.begins == "{" and not _may_be_json_call(body)

    def may_call(self, name: str, tools: Sequence[Tool]) -> bool:
        """Whether a call may have this name: without an opening tag, JSON with another name is content."""
        return not self.is_bare or any(tool.name == name for tool in tools)

    def is_whole(self, body: str) -> bool:
        """Whether a body without its closing tag may be a whole call: arguments in tags may be too few."""
        return self.argument is None or (bool(self.tail) and body.rstrip().endswith(self.tail))

    def named(self, text: str, name: str) -> str:
        """Put a tool's name into a text of the format."""
        quoted = json.dumps(name, ensure_ascii=False)[1:-1] if self.begins == "{" else name
        return text.replace(NAME, quoted)

    def example(self) -> str:
        """Describe a call to a model."""
        arguments = "<args-json-object>"
        if self.argument is not None:
            arguments = "<argument-value>".join(self.argument).replace(NAME, "<argument-name>")
            arguments = arguments.replace(IS_TEXT, "true|false")
        before = self.before.replace(f'"{NAME}"', "<function-name>").replace(NAME, "<function-name>")
        text = self.section[0] + before + arguments + self.after + self.section[1]
        return text.replace(NUMBER, "0")


def _may_be_json_call(body: str) -> bool:
    found = _FIRST_KEY.match(body)
    if found is None:
        return _ONLY_BRACE.fullmatch(body) is not None
    return found[1] in _KEYS if found[2] else any(key.startswith(found[1]) for key in _KEYS)


def parse_json_calls(body: str, tools: Sequence[Tool]) -> list[Call]:
    """Read a call, or a list of calls, that is JSON as a whole."""
    try:
        found = json.loads(body)
        return [_json_call(item) for item in (found if isinstance(found, list) else [found])]
    except NO_CALL:
        return []


def _json_call(found: Any) -> Call:
    """Read one call. Raises one of `NO_CALL`."""
    arguments = found.get("arguments", found.get("parameters")) or {}
    if isinstance(arguments, str):  # JSON in a string
        arguments = json.loads(arguments)
    return make_call(found["name"], arguments)


def make_call(name: Any, arguments: Any) -> Call:
    """Write a call that a parser has read. Raises one of `NO_CALL`: it is none."""
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise ValueError("no call")
    name.encode()  # half a character fails
    is_ascii = "\\ud" in json.dumps(arguments)  # perhaps half a character, which only an escape can write
    return Call(name, json.dumps(arguments, ensure_ascii=is_ascii, allow_nan=False))
