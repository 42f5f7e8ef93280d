"""The tools that a client offers, and the parts of an answer that calls them. Data only."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Tool:
    """A function that the client offers. `parameters`: the JSON schema of its arguments; None: any object."""

    name: str
    description: str = ""
    parameters: dict[str, Any] | None = None
    is_strict: bool = False

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON schema of its arguments, which are always an object."""
        return {**(self.parameters or {}), "type": "object"}

    @property
    def arguments(self) -> dict[str, dict[str, Any]]:
        """The schema of each argument; for a reference, the definition that it names."""
        properties = self.schema.get("properties")
        named = properties if isinstance(properties, dict) else {}
        return {name: _resolved(part, self.schema) for name, part in named.items()}

    def for_template(self) -> dict[str, Any]:
        """Return the tool in OpenAI's form, which chat templates expect."""
        described = {"description": self.description} if self.description else {}
        parameters = self.parameters or {"type": "object", "properties": {}}
        return {"type": "function", "function": {"name": self.name, **described, "parameters": parameters}}


@dataclass(frozen=True)
class Content:
    """Text for the user."""

    text: str


@dataclass(frozen=True)
class Reasoning:
    """Text that the model wrote before its answer."""

    text: str


@dataclass(frozen=True)
class CallStart:
    """A tool call begins. Its name may be none of the tools': the client decides."""

    index: int
    name: str


@dataclass(frozen=True)
class CallArguments:
    """A piece of a call's arguments; all pieces of one index are one JSON object."""

    index: int
    text: str


AnswerPart = Content | Reasoning | CallStart | CallArguments


def _resolved(part: Any, whole: Mapping[str, Any]) -> dict[str, Any]:
    """Return a part of a schema, or the definition in the whole schema that it refers to."""
    found = part
    if isinstance(part, dict) and str(part.get("$ref", "")).startswith("#/"):
        found = whole
        for step in part["$ref"][2:].split("/"):
            found = found.get(step) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}
