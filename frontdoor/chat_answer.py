"""Reads the answer to a chat, from the text that the model wrote: content, reasoning and tool calls.

Every API that answers chats reads with it, and writes the parts in its own form. Knows no API.
"""

from collections.abc import Callable, Sequence

from frontdoor.kept_turns import make_call_id
from prompts.formats import AnswerPart, AnswerReader, Content
from spool import Result


class ChatAnswer:
    """One answer; `content` is the text so far, without reasoning and calls."""

    def __init__(self, request_id: str, reader: AnswerReader, on_end: Callable[[str], None]) -> None:
        """Args: on_end: called at the end with the content."""
        self.request_id = request_id
        self._reader, self._on_end = reader, on_end
        self._contents: list[str] = []

    @property
    def content(self) -> str:
        return "".join(self._contents)

    def add(self, text: str) -> Sequence[AnswerPart]:
        """Return the parts of new text; none while it may still become a call or reasoning."""
        return self._keep(self._reader.add(text))

    def finish(self) -> Sequence[AnswerPart]:
        """Return the last parts."""
        parts = self._keep(self._reader.finish())
        self._on_end(self.content)
        return parts

    def whole(self, result: Result) -> Sequence[AnswerPart]:
        """Return all parts of an answer that was not followed."""
        return [*self.add(result.text), *self.finish()]

    def call_id(self, index: int) -> str:
        return make_call_id(self.request_id, index)

    def finish_reason(self, result: Result) -> str:
        """Return stop, length or tool_calls, after the last part."""
        is_called = self._reader.num_calls and result.finish_reason == "stop"
        return "tool_calls" if is_called else result.finish_reason

    def _keep(self, parts: Sequence[AnswerPart]) -> Sequence[AnswerPart]:
        self._contents += [part.text for part in parts if isinstance(part, Content)]
        return parts
