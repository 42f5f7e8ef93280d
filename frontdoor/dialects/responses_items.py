"""Writes the parts of an answer as the items of OpenAI's Responses API, each with its events of a stream.

    function_call         output_item.added, deltas, done, output_item.done
    custom_tool_call      the same; its input is inside of JSON, so it comes in one delta
    message, reasoning    the same, with content_part.added before the deltas, content_part.done behind them

Items come one after another. Knows nothing of the response around them.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from frontdoor.chat_answer import ChatAnswer
from frontdoor.dialects.responses_input import read_custom_input
from prompts.formats import AnswerPart, CallStart, Content, Reasoning
from spool import Result

Event = dict[str, Any]
Logprobs = list[dict[str, Any]]


class _Item(ABC):
    """One item, while it is written."""

    prefix: str
    stem: str  # of its events' names

    def __init__(self, number: int, request_id: str) -> None:
        self._number, self.id = number, f"{self.prefix}_{request_id}_{number}"
        self._pieces: list[str] = []

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    @abstractmethod
    def write(self, status: str, text: str) -> dict[str, Any]:
        """Return the item as clients get it; without text it has no parts yet."""

    @abstractmethod
    def last(self) -> Iterator[Event]:
        """Yield the event with the whole text, and what follows it."""

    def begin(self) -> Iterator[Event]:
        yield self._about_item("added", self.write("in_progress", ""))

    def add(self, text: str) -> Iterator[Event]:
        self._pieces.append(text)
        yield self.event(f"{self.stem}.delta", delta=text)

    def end(self, status: str) -> Iterator[Event]:
        yield from self.last()
        yield self._about_item("done", self.write(status, self.text))

    def event(self, kind: str, **members: Any) -> Event:
        return {"type": kind, "item_id": self.id, "output_index": self._number, **members}

    def _about_item(self, kind: str, item: dict[str, Any]) -> Event:
        return {"type": f"response.output_item.{kind}", "output_index": self._number, "item": item}


class _TextItem(_Item):
    """An item whose text is its only part."""

    @abstractmethod
    def part(self, text: str) -> dict[str, Any]: ...

    def begin(self) -> Iterator[Event]:
        yield from super().begin()
        yield self.event("response.content_part.added", part=self.part(""))

    def last(self) -> Iterator[Event]:
        yield self.event(f"{self.stem}.done", text=self.text)
        yield self.event("response.content_part.done", part=self.part(self.text))

    def event(self, kind: str, **members: Any) -> Event:
        return super().event(kind, content_index=0, **members)


class _ReasoningItem(_TextItem):
    prefix, stem = "rs", "response.reasoning_text"

    def write(self, status: str, text: str) -> dict[str, Any]:
        content = [self.part(text)] if text else []
        return {"id": self.id, "type": "reasoning", "status": status, "summary": [], "content": content}

    def part(self, text: str) -> dict[str, Any]:
        return {"type": "reasoning_text", "text": text}


class _MessageItem(_TextItem):
    prefix, stem = "msg", "response.output_text"

    def __init__(self, number: int, request_id: str, take_logprobs: Callable[[], Logprobs]) -> None:
        super().__init__(number, request_id)
        self._take_logprobs = take_logprobs
        self._logprobs: Logprobs = []

    def write(self, status: str, text: str) -> dict[str, Any]:
        content = [] if status == "in_progress" else [self.part(text)]
        return {"id": self.id, "type": "message", "status": status, "role": "assistant", "content": content}

    def part(self, text: str) -> dict[str, Any]:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(self._logprobs)}

    def add(self, text: str) -> Iterator[Event]:
        logprobs = self._take_logprobs()
        self._logprobs += logprobs
        for event in super().add(text):
            yield {**event, "logprobs": logprobs}

    def last(self) -> Iterator[Event]:
        text, part = super().last()
        yield {**text, "logprobs": list(self._logprobs)}
        yield part


class _CallItem(_Item):
    prefix, stem = "fc", "response.function_call_arguments"

    def __init__(self, number: int, request_id: str, name: str, call_id: str) -> None:
        super().__init__(number, request_id)
        self._called = {"call_id": call_id, "name": name}

    def write(self, status: str, text: str) -> dict[str, Any]:
        head = {"id": self.id, "type": "function_call", "status": status}
        return {**head, **self._called, "arguments": text}

    def last(self) -> Iterator[Event]:
        yield self.event(f"{self.stem}.done", name=self._called["name"], arguments=self.text)


class _CustomCallItem(_CallItem):
    prefix, stem = "ctc", "response.custom_tool_call_input"

    def write(self, status: str, text: str) -> dict[str, Any]:
        head = {"id": self.id, "type": "custom_tool_call", "status": status}
        return {**head, **self._called, "input": read_custom_input(text) if text else ""}

    def add(self, text: str) -> Iterator[Event]:
        self._pieces.append(text)
        yield from ()

    def last(self) -> Iterator[Event]:
        given = read_custom_input(self.text)
        yield self.event(f"{self.stem}.delta", delta=given)
        yield self.event(f"{self.stem}.done", input=given)


def items_of(answer: ChatAnswer, result: Result, custom_tools: frozenset[str]) -> dict[str, dict[str, Any]]:
    """Return the items of a finished answer by their ids."""
    items = AnswerItems(answer, custom_tools, list)
    for _ in (*items.add(answer.whole(result)), *items.finish("completed")):
        pass
    return {item["id"]: item for item in items.finished}


class AnswerItems:
    """The items of one answer. `finished`: those that have ended."""

    def __init__(
        self, answer: ChatAnswer, custom_tools: frozenset[str], take_logprobs: Callable[[], Logprobs]
    ) -> None:
        """
        Args:
            take_logprobs: returns the logprobs of the tokens since the last call.
        """
        self.finished: list[dict[str, Any]] = []
        self.reasoning = ""
        self._answer, self._custom_tools, self._take_logprobs = answer, custom_tools, take_logprobs
        self._open: _Item | None = None
        self._has_output = False  # besides reasoning

    def add(self, parts: Sequence[AnswerPart]) -> Iterator[Event]:
        """Yield the events of new parts."""
        for part in parts:
            match part:
                case Reasoning(text):
                    self.reasoning += text
                    if not isinstance(self._open, _ReasoningItem):
                        yield from self._begin(_ReasoningItem(*self._place()))
                case Content():
                    if not isinstance(self._open, _MessageItem):
                        yield from self._begin_message()
                case CallStart(index, name):
                    kind = _CustomCallItem if name in self._custom_tools else _CallItem
                    yield from self._begin(kind(*self._place(), name, self._answer.call_id(index)))
            if not isinstance(part, CallStart):
                assert self._open is not None
                yield from self._open.add(part.text)

    def finish(self, status: str) -> Iterator[Event]:
        """Yield the last events; an answer without text and calls has an empty message."""
        if not self._has_output:
            yield from self._begin_message()
        yield from self._end(status)

    def _begin_message(self) -> Iterator[Event]:
        yield from self._begin(_MessageItem(*self._place(), self._take_logprobs))

    def _begin(self, item: _Item) -> Iterator[Event]:
        yield from self._end("completed")
        self._open = item
        self._has_output = self._has_output or not isinstance(item, _ReasoningItem)
        yield from item.begin()

    def _end(self, status: str) -> Iterator[Event]:
        if self._open is not None:
            yield from self._open.end(status)
            self.finished.append(self._open.write(status, self._open.text))
            self._open = None

    def _place(self) -> tuple[int, str]:
        """Return the number of the next item, and the request's id."""
        return len(self.finished) + (self._open is not None), self._answer.request_id
