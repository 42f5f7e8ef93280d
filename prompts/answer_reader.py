"""Splits an answer, while it comes, into reasoning, content and tool calls.

Text that may begin a tag is held back until that is clear. Where a call's name and the opening brace of its
arguments are next to each other, the arguments are passed on as they come: braces and strings show where they
end. Any other call is held until its closing tag and read whole; what is no call comes out as Content, with
its tags. White space beside a call, and around the tags of reasoning, is dropped.

What was passed on cannot be taken back: arguments that break off, or turn out to be no JSON, stay as they
came, and the client reads them. The sum of the parts does not depend on how the text was cut into pieces.
Knows no tokens.
"""

import re
from collections.abc import Sequence

from prompts.answer_parts import AnswerPart, CallArguments, CallStart, Content, Reasoning, Tool
from prompts.reasoning import ReasoningTags
from prompts.tool_formats import ToolFormat

_STRUCTURE = re.compile(r'["\\{}\[\]]')
_BLANKS_AND_SEPARATOR = " \t\r\n;"  # between the calls of Llama models


class AnswerReader:
    """Reads one answer. `num_calls`: the tool calls that have begun."""

    def __init__(
        self,
        tool_format: ToolFormat | None,
        tools: Sequence[Tool] = (),
        reasoning: ReasoningTags | None = None,
        *,
        is_thinking: bool = False,
    ) -> None:
        """
        Args:
            tool_format: None: the answer has no tool calls.
            reasoning: None: the answer has no reasoning.
            is_thinking: whether the prompt ends inside an open tag of reasoning.
        """
        self.num_calls = 0
        self._format, self._tools, self._tags = tool_format, tools, reasoning
        self._text = ""  # not yet read
        self._raw = ""  # tags and white space before a call, which are Content if it turns out to be none
        self._is_after_tag = False
        self._is_start = True
        self._braces = _Braces()
        self._parts: list[AnswerPart] = []
        self._openings = () if tool_format is None else (tool_format.opening, *tool_format.other_openings)
        self._marks = _marks(tool_format, reasoning)
        self._mark = re.compile("|".join(map(re.escape, self._marks)))
        if reasoning is None:
            self._read = self._read_content
        else:
            self._read = self._read_reasoning_start if is_thinking else self._read_beginning

    def add(self, text: str) -> list[AnswerPart]:
        """Add a piece of the answer; return the parts that are now final."""
        self._text += text
        return self._run(is_last=False)

    def finish(self) -> list[AnswerPart]:
        """Return the parts held back, at the end of the answer."""
        return self._run(is_last=True)

    def _run(self, *, is_last: bool) -> list[AnswerPart]:
        while self._read(is_last):
            pass
        parts, self._parts = self._parts, []
        return parts

    # Each of these reads from the text what it can, and returns whether the next one can go on.

    def _read_beginning(self, is_last: bool) -> bool:
        assert self._tags is not None
        begun = self._text.lstrip()
        if begun.startswith(self._tags.opening):
            self._text = begun[len(self._tags.opening) :]
            self._read = self._read_reasoning_start
            return True
        if self._tags.opening.startswith(begun) and not is_last:
            return False
        self._read = self._read_content
        return True

    def _read_reasoning_start(self, is_last: bool) -> bool:
        self._text = self._text.lstrip()
        if self._text:
            self._read = self._read_reasoning
        return bool(self._text)

    def _read_reasoning(self, is_last: bool) -> bool:
        assert self._tags is not None
        thought, closing, rest = self._text.partition(self._tags.closing)
        if closing:
            self._emit(Reasoning, thought.rstrip())
            self._text, self._read = rest, self._read_reasoning_end
            return True
        kept = 0 if is_last else _held_back(self._text, (self._tags.closing,))
        self._emit(Reasoning, self._take(len(self._text) - kept))
        return False

    def _read_reasoning_end(self, is_last: bool) -> bool:
        self._text = self._text.lstrip()
        if self._text:
            self._read = self._read_content
        return bool(self._text)

    def _read_content(self, is_last: bool) -> bool:
        if self._format is None:
            self._emit(Content, self._take(len(self._text)))
            return False
        if self._is_after_tag:
            spoken = self._text.lstrip(_BLANKS_AND_SEPARATOR if self._format.is_bare else None)
            self._raw += self._take(len(self._text) - len(spoken))
        if self._format.is_bare and (self._is_after_tag or self._is_start):
            begun = self._text.lstrip()
            if begun.startswith("{"):
                self._drop(len(self._text) - len(begun), 0)
                self._read = self._read_call
                return True
            if not begun and not is_last:
                return False
        mark = self._mark.search(self._text)
        if mark is None:
            kept = 0 if is_last else _held_back(self._text, self._marks)
            self._emit(Content, self._take(len(self._text) - kept))
            return False
        self._drop(mark.start(), mark.end() - mark.start())
        if mark[0] in self._openings:
            self._read = self._read_call
        elif self._tags is not None and mark[0] == self._tags.opening:
            self._read = self._read_reasoning_start
        return True

    def _read_call(self, is_last: bool) -> bool:
        assert self._format is not None
        if self._format.is_refuted(self._text):
            self._release(0)
            return True
        header = self._format.header.match(self._text) if self._format.header else None
        if header is not None and self._format.may_call(header[1], self._tools):
            self._start(header[1])
            self._text = self._text[header.end() :]
            self._braces = _Braces()
            self._read = self._read_arguments
            return True
        closing = self._format.closing
        body, found, after = self._text.partition(closing) if closing else (self._text, "", "")
        if not found and not is_last:
            return False
        calls = self._format.parse(body, self._tools) if found or self._format.is_whole(body) else []
        if not all(self._format.may_call(call.name, self._tools) for call in calls):
            calls = []
        for call in calls:
            self._start(call.name)
            self._emit_arguments(call.arguments)
        if calls:
            self._text, self._read = after, self._read_content
        else:  # the tag may have been a word of the content, before a real call
            again = self._mark.search(body)
            self._release(again.start() if again else len(body) + len(found))
        return True

    def _read_arguments(self, is_last: bool) -> bool:
        end = self._braces.find_end(self._text)
        self._emit_arguments(self._take(len(self._text) if end is None else end))
        if end is None:
            return False
        self._read = self._read_tail
        return True

    def _read_tail(self, is_last: bool) -> bool:
        """Read up to the closing tag; if it is missing, what is more than the format's tail is Content."""
        assert self._format is not None
        tail, closing = self._format.tail, self._format.closing
        if not closing:
            begun = self._text.lstrip()
            if tail and not begun and not is_last:
                return False
            if tail and begun.startswith(tail):  # other white space is read with the content
                self._text = begun.removeprefix(tail)
        else:
            end, again = self._text.find(closing), self._mark.search(self._text)
            if end >= 0 and not (again and again.start() < end):
                self._text = self._text[end + len(closing) :]
            elif not again and not is_last:
                return False
            else:
                rest = self._take(again.start() if again else len(self._text)).strip()
                self._emit(Content, "" if tail.startswith(rest) else rest)
        self._is_after_tag = True
        self._read = self._read_content
        return True

    def _drop(self, at: int, length: int) -> None:
        """Pass on the text up to this place; drop the tag there, and the white space before it."""
        said = self._take(at)
        spoken = said.rstrip()
        self._emit(Content, spoken)
        self._raw += said[len(spoken) :] + self._take(length)
        self._is_after_tag = True

    def _release(self, length: int) -> None:
        """Pass on what was dropped, and this much of the text after it, as Content."""
        self._emit(Content, self._raw + self._take(length))
        self._raw = ""
        self._is_start = self._is_after_tag = False
        self._read = self._read_content

    def _start(self, name: str) -> None:
        self._parts.append(CallStart(self.num_calls, name))
        self.num_calls += 1
        self._raw = ""
        self._is_after_tag = True

    def _emit_arguments(self, text: str) -> None:
        if text:
            self._parts.append(CallArguments(self.num_calls - 1, text))

    def _emit(self, kind: type[Content] | type[Reasoning], text: str) -> None:
        if text:
            self._raw = ""
            self._is_start = self._is_after_tag = False
            self._parts.append(kind(text))

    def _take(self, length: int) -> str:
        taken, self._text = self._text[:length], self._text[length:]
        return taken


class _Braces:
    """Finds the end of a JSON object that comes in pieces, by its braces outside of strings."""

    def __init__(self) -> None:
        self._depth = 0
        self._is_in_string = False
        self._is_escaped = False

    def find_end(self, piece: str) -> int | None:
        """Return the offset behind the object's last brace; None: it is not in this piece."""
        at = 0
        while at < len(piece):
            if self._is_escaped:
                self._is_escaped = False
                at += 1
                continue
            found = _STRUCTURE.search(piece, at)
            if found is None:
                return None
            at = found.end()
            if self._is_ended_by(found[0]):
                return at
        return None

    def _is_ended_by(self, char: str) -> bool:
        if self._is_in_string:
            self._is_escaped = char == "\\"
            self._is_in_string = char != '"'
            return False
        if char == '"':
            self._is_in_string = True
        elif char in "{[":
            self._depth += 1
        elif char in "}]":
            self._depth -= 1
        return self._depth == 0 and char in "}]"


def _marks(tool_format: ToolFormat | None, reasoning: ReasoningTags | None) -> tuple[str, ...]:
    """Return the tags that end content."""
    if tool_format is None:
        return ()
    marks = (tool_format.opening, *tool_format.other_openings, *tool_format.dropped)
    # with channels, reasoning may come again after content
    return (*marks, reasoning.opening) if tool_format.answer and reasoning is not None else marks


def _held_back(text: str, tags: Sequence[str]) -> int:
    """Return the length of the ending that may become white space and a tag."""
    begun = max(
        length
        for tag in tags
        for length in range(min(len(tag) - 1, len(text)) + 1)
        if text.endswith(tag[:length])
    )
    return len(text) - len(text[: len(text) - begun].rstrip())
