"""Reads the sources of settings: `.env`, `config.json`, the environment and the command line.

Each reader returns values as text with their lines, and the problems of the source. python-dotenv parses
`.env`, never a shell; `config.json` is one flat object of text, numbers and nulls. Knows no key.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dotenv.parser import Binding, parse_stream

from config.errors import Problem

DOTENV_NAME = ".env"
JSON_NAME = "config.json"


@dataclass(frozen=True, slots=True)
class Origin:
    """The place of a value: a source, and a line where the source is a file."""

    source: str
    line: int | None = None

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}"


DEFAULT = Origin("default")
ENVIRONMENT = Origin("environment")
COMMAND_LINE = Origin("command line")


@dataclass(frozen=True, slots=True)
class Entry:
    """One value as text; None is JSON's null."""

    value: str | None
    origin: Origin


@dataclass(slots=True)
class Layer:
    """The entries and the problems of one source."""

    entries: dict[str, Entry] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def add(self, key: str, value: str | None, origin: Origin) -> None:
        """Add a value; a second value of the same key is a problem."""
        if key in self.entries:
            first = self.entries[key].origin
            sentence = f"{key} appears for the second time, first at {first}; remove one of them"
            self.refuse(origin, sentence, key)
        else:
            self.entries[key] = Entry(value.strip() if value is not None else None, origin)

    def refuse(self, origin: Origin, sentence: str, key: str = "") -> None:
        """Add a problem of the source itself."""
        self.problems.append(Problem(str(origin), sentence, key))


def read_mapping(values: Mapping[str, str], origin: Origin) -> Layer:
    """Read values that have no lines: the environment or the command line."""
    return Layer({key: Entry(value.strip(), origin) for key, value in values.items()})


def read_dotenv(path: Path) -> Layer:
    """Read a `.env` file; a missing one holds nothing."""
    layer = Layer()
    text = _read_text(path, layer)
    for binding in parse_stream(io.StringIO(text)):
        origin = Origin(path.name, _first_line(binding))
        key, value = binding.key, binding.value
        if binding.error or (key is not None and value is None):
            layer.refuse(origin, "this line is not KEY=value")
        elif key is not None and "${" in (value or ""):
            sentence = f"{key} refers to a variable, which is not expanded; write its value instead"
            layer.refuse(origin, sentence, key)
        elif key is not None:
            layer.add(key, value, origin)
    return layer


def _first_line(binding: Binding) -> int:
    # python-dotenv 1.2 counts the blank lines before a binding as a part of it.
    text = binding.original.string
    return binding.original.line + text[: len(text) - len(text.lstrip())].count("\n")


def read_json_settings(path: Path) -> Layer:
    """Read a `config.json` file; a missing one holds nothing."""
    layer = Layer()
    text = _read_text(path, layer)
    if not text.strip():
        return layer
    try:
        found = list(_scan_object(text))
    except json.JSONDecodeError as error:
        sentence = f"this is not valid JSON: {error.msg} (column {error.colno})"
        layer.refuse(Origin(path.name, error.lineno), sentence)
        return layer
    for key, value, line in found:
        origin = Origin(path.name, line)
        if value is None or isinstance(value, str):
            layer.add(key, value, origin)
        else:
            layer.refuse(origin, f"{key} must be text, a number or null", key)
    return layer


def _scan_object(text: str) -> Iterator[tuple[str, object, int]]:
    """Yield key, value and line of each member of the object in `text`; numbers stay text."""
    decoder = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=str)
    if not isinstance(decoder.decode(text), dict):
        raise json.JSONDecodeError("the file must hold one object { … }", text, 0)
    position = _skip_blanks(text, text.index("{") + 1)
    while text[position] != "}":
        line = text.count("\n", 0, position) + 1
        key, position = decoder.raw_decode(text, position)
        start = _skip_blanks(text, text.index(":", position) + 1)
        value, position = decoder.raw_decode(text, start)
        yield key, value, line
        position = _skip_blanks(text, position)
        if text[position] == ",":
            position = _skip_blanks(text, position + 1)


def _skip_blanks(text: str, position: int) -> int:
    blanks = re.compile(r"[ \t\r\n]*").match(text, position)
    assert blanks is not None
    return blanks.end()


def _read_text(path: Path, layer: Layer) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        layer.refuse(Origin(path.name, line), "this is not UTF-8 text")
    except OSError as error:
        layer.refuse(Origin(path.name), f"the file cannot be read: {error.strerror}")
    return ""
