"""The messages of Anthropic's API, and the blocks that they consist of.

Fields of `BlockHints` are accepted and read by nobody. Blocks of files are refused by name, all others that
are not listed here by their type.
"""

from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Discriminator,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)
from pydantic_core import PydanticCustomError

from frontdoor.schemas import Body


class BlockHints(Body):
    """Fields of blocks and tools that no chat template reads."""

    cache_control: Any = None
    citations: Any = None
    caller: Any = None
    toolset_name: Any = None
    parsed_output: Any = None


class TextBlock(BlockHints):
    """Text of anybody."""

    type: Literal["text"]
    text: str


class ThinkingBlock(BlockHints):
    """The model's reasoning before an answer."""

    type: Literal["thinking"]
    thinking: str
    signature: Any = None


class RedactedThinkingBlock(BlockHints):
    """Another service's reasoning, which nobody else can read."""

    type: Literal["redacted_thinking"]
    data: Any = None


class ToolUseBlock(BlockHints):
    """A call."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


class ToolReferenceBlock(BlockHints):
    """A deferred tool that the client's own search found."""

    type: Literal["tool_reference"]
    tool_name: str


class FileBlock(Body):
    """What this server cannot read."""

    model_config = ConfigDict(extra="allow")

    type: Literal["image", "document"]

    @field_validator("type")
    @classmethod
    def _is_refused(cls, value: str) -> str:
        said = "{kind} blocks are not supported: this server reads text only"
        raise PydanticCustomError("not_built", said, {"kind": value})


def _as_blocks(value: object) -> object:
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


_AS_BLOCKS = BeforeValidator(_as_blocks)
_TEXT_OR_BLOCKS = WithJsonSchema(
    {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}]}
)
_BY_TYPE = Discriminator("type")
TextBlocks = Annotated[list[Annotated[TextBlock | FileBlock, _BY_TYPE]], _AS_BLOCKS, _TEXT_OR_BLOCKS]
ResultBlocks = Annotated[
    list[Annotated[TextBlock | ToolReferenceBlock | FileBlock, _BY_TYPE]], _AS_BLOCKS, _TEXT_OR_BLOCKS
]


class ToolResultBlock(BlockHints):
    """What a call returned."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: ResultBlocks | None = None
    is_error: bool | None = None


Block = TextBlock | ThinkingBlock | RedactedThinkingBlock | ToolUseBlock | ToolResultBlock | FileBlock
_BLOCKS_OF_ROLES = {
    "user": ("text", "tool_result"),
    "assistant": ("text", "tool_use", "thinking", "redacted_thinking"),
    "system": ("text",),
}


class MessageParam(Body):
    """One message."""

    role: Literal["user", "assistant", "system"]
    content: Annotated[list[Annotated[Block, _BY_TYPE]], _AS_BLOCKS, _TEXT_OR_BLOCKS]

    @field_validator("content")
    @classmethod
    def _belongs_to_role(cls, blocks: list[Block], info: ValidationInfo) -> list[Block]:
        role = info.data.get("role", "")
        allowed = _BLOCKS_OF_ROLES.get(role, ())
        for block in blocks if allowed else ():  # else the role is refused
            if block.type not in allowed:
                said = "{kind} blocks cannot be in {role} messages"
                raise PydanticCustomError("invalid", said, {"kind": block.type, "role": role})
        return blocks
