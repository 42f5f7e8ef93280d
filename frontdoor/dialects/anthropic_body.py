"""The bodies of Anthropic's Messages API, and the chat that they become.

Fields that change no output here are in `Hints`, blocks have theirs in `BlockHints`; the rest is honoured or
refused. Knows nothing of answers.
"""

from collections.abc import Set
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)
from pydantic_core import PydanticCustomError

from frontdoor.chat_request import make_chat, make_draft
from frontdoor.dialects.anthropic_turns import make_turns
from frontdoor.dialects.dialect import DialectBody
from frontdoor.encoding import Draft
from frontdoor.http.errors import InvalidRequest
from frontdoor.schemas import Body, Number, Only, StopStrings
from frontdoor.tools import MAX_NAME_LENGTH

Effort = Literal["low", "medium", "high", "xhigh", "max"]
_BUDGETS = (("low", 4096), ("medium", 16384))  # tokens of reasoning, below which an effort is that
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


class BlockHints(Body):
    """Fields of blocks and tools that no chat template reads."""

    cache_control: Any = None
    citations: Any = None
    caller: Any = None
    toolset_name: Any = None
    parsed_output: Any = None


class TextBlock(BlockHints):
    type: Literal["text"]
    text: str


class ThinkingBlock(BlockHints):
    type: Literal["thinking"]
    thinking: str
    signature: Any = None


class RedactedThinkingBlock(BlockHints):
    """Another service's reasoning, which nobody else can read."""

    type: Literal["redacted_thinking"]
    data: Any = None


class ToolUseBlock(BlockHints):
    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


class FileBlock(Body):
    """What this server cannot read; refused by its name."""

    model_config = ConfigDict(extra="allow")

    type: Literal["image", "document"]

    @field_validator("type")
    @classmethod
    def _is_refused(cls, value: str) -> str:
        raise PydanticCustomError(
            "not_built", "{kind} blocks are not supported: this server reads text only", {"kind": value}
        )


def _as_blocks(value: object) -> object:
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


_TEXT_OR_BLOCKS = WithJsonSchema(
    {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}]}
)
TextBlocks = Annotated[
    list[Annotated[TextBlock | FileBlock, Discriminator("type")]],
    BeforeValidator(_as_blocks),
    _TEXT_OR_BLOCKS,
]


class ToolResultBlock(BlockHints):
    type: Literal["tool_result"]
    tool_use_id: str
    content: TextBlocks | None = None
    is_error: bool | None = None


Block = TextBlock | ThinkingBlock | RedactedThinkingBlock | ToolUseBlock | ToolResultBlock | FileBlock
_BLOCKS_OF_ROLES = {
    "user": ("text", "tool_result"),
    "assistant": ("text", "tool_use", "thinking", "redacted_thinking"),
    "system": ("text",),
}


class Message(Body):
    """One message."""

    role: Literal["user", "assistant", "system"]
    content: Annotated[
        list[Annotated[Block, Discriminator("type")]], BeforeValidator(_as_blocks), _TEXT_OR_BLOCKS
    ]

    @field_validator("content")
    @classmethod
    def _belongs_to_role(cls, blocks: list[Block], info: ValidationInfo) -> list[Block]:
        role = info.data.get("role", "")
        allowed = _BLOCKS_OF_ROLES.get(role, ())
        for block in blocks if allowed else ():  # else the role is refused
            if block.type not in allowed:
                said = {"kind": block.type, "role": role}
                raise PydanticCustomError("invalid", "{kind} blocks cannot be in {role} messages", said)
        return blocks


class CustomTool(BlockHints):
    """A tool that the client runs."""

    type: Literal["custom"] | None = None
    name: Annotated[str, Field(min_length=1, max_length=MAX_NAME_LENGTH)]
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None
    defer_loading: Any = None
    eager_input_streaming: Any = None
    allowed_callers: Any = None
    input_examples: Any = None

    def as_function(self) -> dict[str, Any]:
        """Return the tool in OpenAI's form."""
        described = {"name": self.name, "description": self.description, "parameters": self.input_schema}
        return {"type": "function", "function": {**described, "strict": self.strict}}


class BuiltinTool(Body):
    """A tool of Anthropic's own servers or models, which is not offered here."""

    model_config = ConfigDict(extra="allow")

    type: str


def _kind_of_tool(tool: Any) -> str:
    kind = tool.get("type") if isinstance(tool, dict) else getattr(tool, "type", None)
    return "builtin" if isinstance(kind, str) and kind != "custom" else "custom"


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
    messages: Annotated[list[Message], Field(min_length=1)]
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
        choice, config = self.tool_choice or ToolChoice(type="auto"), self.output_config or OutputConfig()
        is_off = self.thinking is not None and self.thinking.type == "disabled"
        thinking_effort = None if self.thinking is None else self.thinking.effort
        draft = make_draft(
            make_chat(
                {
                    "messages": make_turns(self.system or (), self.messages),
                    "model": self.model,
                    "tools": [
                        tool.as_function() for tool in self.tools or () if isinstance(tool, CustomTool)
                    ],
                    "tool_choice": choice.for_chat,
                    "parallel_tool_calls": not choice.disable_parallel_tool_use,
                    "response_format": self._response_format(config.format or self.output_format),
                    "reasoning_effort": "none" if is_off else config.effort or thinking_effort,
                    **self._sampling(),
                }
            )
        )
        return replace(draft, is_effort_optional=True)

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

    @property
    def is_streamed(self) -> bool:
        return bool(self.stream)

    def draft(self) -> Draft:
        """Translate the body.

        Raises:
            InvalidRequest: a field is wrong.
        """
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
