"""The body of OpenAI's Responses API, and its translation to a chat.

No responses are stored, so what refers to one is refused in words; single items of earlier answers are found
while the spool keeps those. Custom tools, whose input is any text, become functions with one string. Tools
that OpenAI itself runs are skipped: agents list them without need. responses_input.py reads the input.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from frontdoor.chat_request import make_chat, make_draft
from frontdoor.dialects.dialect import DialectBody
from frontdoor.dialects.responses_input import invalid, is_reference, read_input, resolve_references
from frontdoor.encoding import Draft
from frontdoor.http.errors import InvalidRequest
from frontdoor.schemas import Body, ChatBody, NoEffectFields, Number, Only, SamplingFields, StreamOptions
from frontdoor.tools import CHOICES, read_tools
from prompts.formats import Tool

_ITEMS = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}, "minItems": 1}]}
_CUSTOM_INPUT = {
    "type": "object",
    "properties": {"input": {"type": "string"}},
    "required": ["input"],
    "additionalProperties": False,
}
_LOGPROBS = "message.output_text.logprobs"
_FULL_CHAT = "this server stores no responses: send the whole conversation in 'input'"
# Fields with a meaning here that cannot be kept: the reason, and OpenAI's code where clients know one.
_REFUSED = {
    "previous_response_id": (_FULL_CHAT, "previous_response_not_found"),
    "conversation": (_FULL_CHAT, None),
    "background": ("POST /generate has background requests", None),
    "prompt": ("this server stores no prompt templates: send 'input'", None),
    "max_tokens": ("the name here is 'max_output_tokens'", None),
    "max_completion_tokens": ("the name here is 'max_output_tokens'", None),
    "response_format": ("takes the place of response_format in this API", None),  # renamed below
}
# What the shared checks name, and this API's name for it.
_NAMES = {
    "messages": "input",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
}


def _text_or_items(value: object) -> object:
    if isinstance(value, str) or (isinstance(value, list) and value):
        return value
    raise PydanticCustomError("invalid", "must be a string or a list of items")


class ReasoningOptions(Body):
    """Reasoning is returned as the model wrote it, so the kind of its summary changes nothing."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: Any = None
    generate_summary: Any = None
    context: Any = None


class TextOptions(Body):
    """The form of the answer's text."""

    format: dict[str, Any] | None = None
    verbosity: Any = None


class ResponsesBody(SamplingFields, NoEffectFields, DialectBody):
    """POST /v1/responses."""

    input: Annotated[Any, AfterValidator(_text_or_items), WithJsonSchema(_ITEMS)]
    instructions: str | None = None
    max_output_tokens: Annotated[int | None, Number("max_tokens")] = None
    top_logprobs: Annotated[int | None, Number("top_logprobs")] = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: Any = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    include: list[str] | None = None
    stream_options: StreamOptions | None = None
    truncation: Literal["auto", "disabled"] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    client_metadata: Any = None
    n: Annotated[Any, Only(1)] = None
    previous_response_id: Any = None
    conversation: Any = None
    background: Any = None
    prompt: Any = None
    max_tokens: Any = None
    max_completion_tokens: Any = None

    @property
    def is_streamed(self) -> bool:
        return bool(self.stream)

    @property
    def custom_tools(self) -> frozenset[str]:
        """The names of the tools whose calls have a text instead of arguments."""
        return frozenset(str(tool.get("name")) for tool in self.tools or () if tool.get("type") == "custom")

    @property
    def skipped_tools(self) -> list[str]:
        """The kinds of the tools that the model does not see."""
        kinds = {str(tool.get("type")) for tool in self.tools or ()}
        return sorted(kinds - {"function", "custom"})

    @property
    def functions(self) -> tuple[Tool, ...]:
        """The tools as the model sees them."""
        return read_tools(list(self._functions()))

    def with_items(self, find: Callable[[str], Mapping[str, Any]]) -> "ResponsesBody":
        """Return the body with the items that its references name.

        Args:
            find: returns the items of the answer to a request, by their ids.
        """
        if isinstance(self.input, str) or not any(map(is_reference, self.input)):
            return self
        return self.model_copy(update={"input": resolve_references(self.input, find)})

    def draft(self) -> Draft:
        for name, (reason, code) in _REFUSED.items():
            if getattr(self, name) not in (None, False):
                raise invalid(name, reason, code=code)
        self._check_echo()
        return replace(make_draft(self._chat()), prompt_field="input")

    def _chat(self) -> ChatBody:
        shared = SamplingFields.model_fields.keys() | NoEffectFields.model_fields.keys()
        has_logprobs = self.top_logprobs is not None or _LOGPROBS in (self.include or ())
        text, reasoning = self.text or TextOptions(), self.reasoning or ReasoningOptions()
        return make_chat(
            {
                **self.model_dump(include=shared - _REFUSED.keys(), exclude_none=True),
                "messages": read_input(self.input, self.instructions),
                "max_tokens": self.max_output_tokens,
                "tools": list(self._functions()),
                "tool_choice": _read_choice(self.tool_choice),
                "parallel_tool_calls": self.parallel_tool_calls,
                "response_format": text.format and _response_format(text.format),
                "reasoning_effort": reasoning.effort,
                "chat_template_kwargs": self.chat_template_kwargs,
                "logprobs": has_logprobs or None,
                "top_logprobs": self.top_logprobs,
            }
        )

    def _functions(self) -> Iterator[dict[str, Any]]:
        """Yield the tools as functions of a chat."""
        for number, tool in enumerate(self.tools or ()):
            kind = tool.get("type")
            if not isinstance(kind, str):
                raise invalid(f"tools[{number}]", "each tool needs a type, such as function")
            if kind not in ("function", "custom"):
                continue
            shown = ("name", "description", "parameters", "strict")
            described = _as_function(tool) if kind == "custom" else tool
            function = {
                "type": "function",
                "function": {name: described[name] for name in shown if described.get(name) is not None},
            }
            try:
                read_tools([function])
            except ValueError as error:
                place = f"tools[{number}]"
                raise invalid(place, str(error).replace("[0].function", place)) from error
            yield function

    def _check_echo(self) -> None:
        """Refuse what JSON cannot hold in the fields that the answer repeats."""
        try:
            json.dumps(self.echo(), allow_nan=False)
        except ValueError:
            raise InvalidRequest("the body has a number that JSON does not know") from None

    def echo(self) -> dict[str, Any]:
        """Return the fields that the answer repeats."""
        text, reasoning = self.text or TextOptions(), self.reasoning or ReasoningOptions()
        return {
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "max_tool_calls": self.max_tool_calls,
            "metadata": self.metadata or {},
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "previous_response_id": None,
            "background": False,
            "reasoning": {"effort": reasoning.effort, "summary": reasoning.summary},
            "service_tier": "default",
            "store": False,
            "temperature": self.temperature,
            "text": {
                "format": text.format or {"type": "text"},
                **({} if text.verbosity is None else {"verbosity": text.verbosity}),
            },
            "tool_choice": self.tool_choice or "auto",
            "tools": self.tools or [],
            "top_logprobs": self.top_logprobs or 0,
            "top_p": self.top_p,
            "truncation": self.truncation or "disabled",
            "user": self.user,
        }


def rename_fields(error: InvalidRequest) -> None:
    """Put this API's names of fields into an error of the shared checks."""
    name = _NAMES.get(error.param or "")
    message = str(error)
    if name is not None:
        message = message.replace(f"'{error.param}'", f"'{name}'").replace("json_schema.schema", "schema")
        error.param = name
    if error.param == "tools":
        message = re.sub(r"\[\d+\]\.function\.", "", message)  # the tool's name follows
    error.args = (message,)


def _as_function(tool: Mapping[str, Any]) -> dict[str, Any]:
    """Return the function that stands for a custom tool; the model reads the grammar of its input."""
    given, form = tool.get("description"), tool.get("format")
    grammar = form.get("definition") if isinstance(form, Mapping) else None
    described = [text for text in (given, grammar) if isinstance(text, str) and text]
    if isinstance(grammar, str) and grammar:
        described.insert(-1, "The input must match this grammar:")
    return {"name": tool.get("name"), "description": "\n\n".join(described), "parameters": _CUSTOM_INPUT}


def _read_choice(choice: object) -> object:
    """Return the choice in the form of chats."""
    if choice is None or choice in CHOICES:
        return choice
    if isinstance(choice, Mapping) and choice.get("type") in ("function", "custom"):
        name = choice.get("name")
        if isinstance(name, str):
            return {"type": "function", "function": {"name": name}}
    raise invalid("tool_choice", 'must be "none", "auto", "required", or {"type": "function", "name": …}')


def _response_format(form: Mapping[str, Any]) -> dict[str, Any]:
    """Return the form of the text as chats ask for it."""
    if form.get("type") != "json_schema":
        return dict(form)
    return {"type": "json_schema", "json_schema": {name: form[name] for name in form if name != "type"}}
