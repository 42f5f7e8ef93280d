"""The bodies of Anthropic's Messages API, and the chat that they become.

Fields that change no output here are in `Hints`; the rest is honoured or refused. Knows nothing of answers.
"""

from collections.abc import Set
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag

from frontdoor.chat_request import make_chat, make_draft
from frontdoor.dialects.anthropic_blocks import BlockHints, MessageParam, TextBlocks
from frontdoor.dialects.anthropic_turns import make_turns
from frontdoor.dialects.dialect import DialectBody
from frontdoor.encoding import Draft
from frontdoor.http.dialects import NO_THREADS
from frontdoor.http.errors import InvalidRequest
from frontdoor.schemas import Body, Number, Only, StopStrings
from frontdoor.tools import MAX_NAME_LENGTH

Effort = Literal["low", "medium", "high", "xhigh", "max"]
_BUDGETS = (("low", 4096), ("medium", 16384))  # tokens of reasoning, below which an effort is that
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


class CustomTool(BlockHints):
    """A tool that the client runs; a deferred one is offered where a `tool_reference` names it."""

    type: Literal["custom"] | None = None
    name: Annotated[str, Field(min_length=1, max_length=MAX_NAME_LENGTH)]
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None
    defer_loading: bool | None = None
    eager_input_streaming: Any = None
    allowed_callers: Any = None
    input_examples: Any = None

    def as_function(self) -> dict[str, Any]:
        """Return the tool in OpenAI's form."""
        described = {"name": self.name, "description": self.description, "parameters": self.input_schema}
        function = {**described, "strict": self.strict}
        return {"type": "function", "function": {k: v for k, v in function.items() if v is not None}}


class BuiltinTool(Body):
    """A tool of Anthropic's own servers or models, which is not offered here."""

    model_config = ConfigDict(extra="allow")

    type: str


def _kind_of_tool(tool: Any) -> str:
    kind = tool.get("type") if isinstance(tool, dict) else getattr(tool, "type", None)
    # A tool in OpenAI's form is refused as a wrong custom one, not skipped.
    return "builtin" if isinstance(kind, str) and kind not in ("custom", "function") else "custom"


Tools = list[
    Annotated[
        Annotated[CustomTool, Tag("custom")] | Annotated[BuiltinTool, Tag("builtin")],
        Discriminator(_kind_of_tool),
    ]
]


class ToolChoice(Body):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None

    @property
    def for_chat(self) -> str | dict[str, Any]:
        """Return the choice in OpenAI's form."""
        if self.type != "tool":
            return _CHOICES[self.type]
        return {"type": "function", "function": {"name": self.name or ""}}


class Thinking(Body):
    type: Literal["enabled", "disabled", "adaptive", "between_tools"]
    budget_tokens: int | None = None
    display: Any = None

    @property
    def effort(self) -> str | None:
        """The effort that a budget stands for; None: the template's default."""
        if self.type == "disabled":
            return "none"
        if self.budget_tokens is None:
            return None
        return next((name for name, end in _BUDGETS if self.budget_tokens < end), "high")


class OutputFormat(Body):
    type: Literal["json_schema"]
    json_schema: dict[str, Any] = Field(alias="schema")


class OutputConfig(Body):
    effort: Effort | None = None
    format: OutputFormat | None = None
    task_budget: Any = None


class Hints(Body):
    """Fields that change no output here; each name is logged once."""

    metadata: Any = None
    service_tier: Any = None
    context_management: Any = None
    cache_control: Any = None
    inference_geo: Any = None
    speed: Any = None
    diagnostics: Any = None


class CountTokensBody(Hints):
    """POST /v1/messages/count_tokens: what the prompt of a message depends on."""

    model: str
    messages: Annotated[list[MessageParam], Field(min_length=1)]
    system: TextBlocks | None = None
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None
    mcp_servers: Annotated[Any, Only([])] = None

    @property
    def hints(self) -> Set[str]:
        """The names of the fields that were sent and have no effect."""
        return self.model_fields_set & Hints.model_fields.keys()

    @property
    def skipped_tools(self) -> list[str]:
        """The types of the tools that are not offered."""
        return [tool.type for tool in self.tools or () if isinstance(tool, BuiltinTool)]

    def draft(self) -> Draft:
        """Translate the body.

        Raises:
            InvalidRequest: a field is wrong.
        """
        tools = [tool for tool in self.tools or () if isinstance(tool, CustomTool)]
        deferred = {tool.name: tool.as_function() for tool in tools if tool.defer_loading}
        choice, config = self.tool_choice or ToolChoice(type="auto"), self.output_config or OutputConfig()
        chat = make_chat(
            {
                "messages": make_turns(self.system or (), self.messages, deferred),
                "model": self.model,
                "tools": [tool.as_function() for tool in tools if not tool.defer_loading],
                "tool_choice": choice.for_chat,
                "parallel_tool_calls": not choice.disable_parallel_tool_use,
                "response_format": self._response_format(config.format or self.output_format),
                "reasoning_effort": self._effort(config.effort),
                **self._sampling(),
            }
        )
        return replace(make_draft(chat), is_effort_optional=True)

    def _effort(self, asked: str | None) -> str | None:
        """Return the effort: what is off stays off, and a budget counts less than an effort."""
        budgeted = None if self.thinking is None else self.thinking.effort
        return budgeted if budgeted == "none" else asked or budgeted

    def _sampling(self) -> dict[str, Any]:
        return {}

    def _response_format(self, asked: OutputFormat | None) -> dict[str, Any] | None:
        if asked is None:
            return None
        described = {"name": "answer", "schema": asked.json_schema, "strict": True}
        return {"type": "json_schema", "json_schema": described}


class MessagesBody(CountTokensBody, DialectBody):
    """POST /v1/messages."""

    max_tokens: Annotated[int | None, Number("max_tokens")]
    stop_sequences: StopStrings = None
    temperature: Annotated[float | None, Number("temperature")] = None
    top_p: Annotated[float | None, Number("top_p")] = None
    top_k: Annotated[int | None, Number("top_k")] = None
    stream: bool | None = None
    container: Annotated[Any, Only()] = None
    thread: Any = None

    @property
    def is_streamed(self) -> bool:
        return bool(self.stream)

    def draft(self) -> Draft:
        """Translate the body.

        Raises:
            InvalidRequest: a field is wrong.
        """
        if self.thread is not None:
            said = "'thread': this server keeps no conversations: send all messages without it"
            raise InvalidRequest(said, param="thread", code=NO_THREADS)
        if self.max_tokens is None:
            raise InvalidRequest("'max_tokens' is required", param="max_tokens")
        if self.messages[-1].role == "assistant":
            raise InvalidRequest(
                "'messages': the last one must be the user's: this server does not continue an answer that "
                "the client has begun",
                param="messages",
            )
        return super().draft()

    def _sampling(self) -> dict[str, Any]:
        named = {name: getattr(self, name) for name in ("max_tokens", "temperature", "top_p", "top_k")}
        return {**named, "stop": self.stop_sequences and list(self.stop_sequences)}
