"""Keeps generated turns as they were, so that the ring reads only what is new in an agent's next turn.

Clients send the whole chat back, with tool calls in their own JSON. Rendered again, such a turn has other
tokens than the model wrote, and the KV of the earlier request matches only up to there. So where a chat goes
on from an answer of this service, its prompt begins with the tokens of that earlier prompt and answer. The
answer is found by the ids of its tool calls, or by its text where they are not ours: Ollama's clients send
none. It counts only if its owner asks, the turn is unchanged, and the chat before it renders as it did then;
otherwise the chat is rendered as usual.

Knows the spool and the tokenizer; nothing of HTTP.
"""

import hashlib
import json
import logging
import os
import re
import secrets
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prompts.formats import AnswerReader, CallArguments, CallStart, Content, Tool
from prompts.tokenizer import MessagesRefused, PromptTokenizer, RenderedChat
from spool import Request, Result, Spool, SpoolError, is_id

MAX_TURNS_TRIED = 2
MAX_ANSWERS = 4096  # found by their text
MAX_SCANNED = 1000
_CALL_ID = re.compile(r"call_([0-9a-f]{32})_[0-9]+")

Turn = dict[str, Any]
Render = Callable[[Sequence[Turn]], RenderedChat]
log = logging.getLogger(__name__)


def make_call_id(request_id: str, index: int) -> str:
    """Return the id of a tool call. It names the request, whose id nobody can guess."""
    return f"call_{request_id}_{index}"


@dataclass(frozen=True)
class _Kept:
    """A request and its answer."""

    request: Request
    result: Result


class KeptTurns:
    """Finds earlier answers of one service; safe to use from several threads."""

    def __init__(self, spool: Spool, tokenizer: PromptTokenizer) -> None:
        self._spool, self._tokenizer = spool, tokenizer
        self._ids: OrderedDict[str, str] = OrderedDict()  # of requests, by prompt and answer

    def note(self, request_id: str, prompt: str, text: str) -> None:
        """Remember an answer by its prompt and its text, without reasoning and tool calls."""
        key = _hash(prompt, text)
        self._ids.pop(key, None)  # the newest is last; each step is safe beside other threads
        self._ids[key] = request_id
        if len(self._ids) > MAX_ANSWERS:
            self._ids.popitem(last=False)

    def scan(self) -> None:
        """Remember the newest answers of an earlier process."""
        try:
            with os.scandir(self._spool.folder.done) as entries:
                newest = sorted(entries, key=lambda entry: entry.stat().st_mtime_ns)[-MAX_SCANNED:]
        except OSError as error:
            log.warning("earlier answers cannot be listed: %s", error.strerror)
            return
        reasoning = self._tokenizer.formats.reasoning
        for entry in newest:
            request_id = entry.name.removesuffix(".json")
            if not is_id(request_id):
                continue
            request = self._read(self._spool.read_request, request_id)
            result = self._read(self._spool.read_result, request_id)
            if request is not None and request.text is not None and result is not None:
                text = result.text.rpartition(reasoning.closing if reasoning else "\0")[2]
                self.note(request_id, request.text, text)

    def continue_from(
        self, turns: Sequence[Turn], chat: RenderedChat, render: Render, tools: Sequence[Tool], owner: str
    ) -> list[int] | None:
        """Return the token ids of a chat that goes on from an earlier answer; None: it is not found.

        Args:
            turns: the chat, as the template gets it.
            chat: all turns as `render` writes them.
            render: applies the chat template; it may raise MessagesRefused.
            owner: of the client; "" where no API keys are required.
        """
        places = [place for place, turn in enumerate(turns[:-1]) if turn["role"] == "assistant"]
        for place in reversed(places[-MAX_TURNS_TRIED:]):
            try:
                kept = self._find(render(turns[:place]), turns[place], tools, owner)
                if kept is not None:
                    return self._join(kept, turns, place, chat, render)
            except MessagesRefused:  # the template takes this chat only as a whole
                continue
        return None

    def _join(
        self, kept: _Kept, turns: Sequence[Turn], place: int, chat: RenderedChat, render: Render
    ) -> list[int] | None:
        """Return the earlier prompt and answer, and what follows them in the chat."""
        mark = f"turn{secrets.token_hex(8)}"
        marked = render([*turns[:place], {"role": "assistant", "content": mark}, *turns[place + 1 :]]).text
        _, found, rest = marked.partition(mark)
        if not found or not chat.text.endswith(rest):
            return None
        start = len(chat.text) - len(rest)
        literals = tuple(offset - start for offset in chat.literals if offset >= start)
        following = self._tokenizer.encode_rendered(rest, literals=literals)
        # Only a special token is the same whatever comes before it.
        if not following or self._tokenizer.detokenizer.has_text(following[0]):
            return None
        answer = list(kept.result.token_ids)
        if answer[-1] in self._tokenizer.end_token_ids:
            answer.pop()
        return [*(kept.request.token_ids or ()), *answer, *following]

    def _find(self, prompt: RenderedChat, turn: Turn, tools: Sequence[Tool], owner: str) -> _Kept | None:
        """Return the request with this prompt that a turn is the answer to.

        Where a client wrote what looks like a control token, the same text can be another prompt.
        """
        calls = turn.get("tool_calls") or ()
        match = _CALL_ID.fullmatch(str(calls[0].get("id"))) if calls else None
        if match is not None:
            request_id: str | None = match[1]
        else:
            request_id = self._ids.get(_hash(prompt.text, turn.get("content") or ""))
        if request_id is None:
            return None
        request = self._read(self._spool.read_request, request_id)
        result = self._read(self._spool.read_result, request_id)
        asked = owner, prompt.text, prompt.literals
        if request is None or result is None or (request.owner, request.text, request.literals) != asked:
            return None
        if not self._is_usable(request, result):
            return None
        reasoning = self._tokenizer.formats.reasoning
        is_thinking = reasoning is not None and reasoning.is_open(prompt.text)
        reader = self._tokenizer.formats.reader(tools, is_thinking=is_thinking)
        defaults = {tool.name: _defaults_of(tool) for tool in tools}
        is_same = _read_turn(reader, result.text, defaults) == _read_sent(turn, defaults)
        return _Kept(request, result) if is_same else None

    def _is_usable(self, request: Request, result: Result) -> bool:
        """Whether the answer's tokens are its text: not where a stop string was cut off."""
        is_whole = result.finish_reason in ("stop", "length") and bool(result.token_ids)
        ends_by_token = is_whole and result.token_ids[-1] in self._tokenizer.end_token_ids
        return (
            is_whole
            and (ends_by_token or not request.params.stop)
            and request.tokenizer_hash == self._tokenizer.hash
            and request.token_ids is not None
        )

    def _read(self, read: Callable[[str], Any], request_id: str) -> Any:
        try:
            return read(request_id)
        except SpoolError:  # a damaged file, or a failing disk: the chat is rendered as usual
            return None


def _hash(prompt: str, text: str) -> str:
    return hashlib.sha256(f"{prompt}\0{text.strip()}".encode("utf-8", "surrogatepass")).hexdigest()


def _defaults_of(tool: Tool) -> Turn:
    """Return the defaults in a tool's schema; Claude Code 2.1 adds them to the calls that it sends back."""
    properties = (tool.parameters or {}).get("properties")
    parts = properties.items() if isinstance(properties, dict) else ()
    return {name: part["default"] for name, part in parts if isinstance(part, dict) and "default" in part}


def _read_turn(
    reader: AnswerReader, text: str, defaults: Mapping[str, Turn]
) -> tuple[str, list[tuple[str, Any]]]:
    """Return the text and the calls of an answer."""
    content, names, arguments = "", [], []
    for part in [*reader.add(text), *reader.finish()]:
        match part:
            case Content(piece):
                content += piece
            case CallStart(_, name):
                names.append(name)
                arguments.append("")
            case CallArguments(index, piece):
                arguments[index] += piece
    calls = zip(names, arguments, strict=True)
    return content.strip(), [(name, _parsed(text, defaults.get(name, {}))) for name, text in calls]


def _read_sent(turn: Turn, defaults: Mapping[str, Turn]) -> tuple[str, list[tuple[str, Any]]]:
    """Return the text and the calls of a turn that a client sends back."""
    functions = [call["function"] for call in turn.get("tool_calls") or ()]
    calls = [(each["name"], _parsed(each["arguments"], defaults.get(each["name"], {}))) for each in functions]
    return (turn.get("content") or "").strip(), calls


def _parsed(arguments: Any, defaults: Turn) -> Any:
    """Return the arguments of a call, with the defaults of those that are missing."""
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            return arguments
    return {**defaults, **arguments} if isinstance(arguments, dict) else arguments
