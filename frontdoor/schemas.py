"""The bodies that clients may send, and what each field must look like.

Nothing is accepted and ignored: an unknown field is refused by name, and a field that is known elsewhere
but not built here is refused unless its value asks for nothing (`Only`). The few OpenAI fields that change
no output stand in `NoEffectFields`. Types are strict (no "5" for 5), numbers finite. Knows the shapes, not
the limits that depend on the settings or the tokenizer; those are checked where the request is accepted.
"""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    WithJsonSchema,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

MAX_STOP_STRINGS = 4
MAX_STOP_LENGTH = 256  # characters
MAX_SEED = 2**63 - 1

_TEXT_OR_TEXTS = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
_TEXT_OR_PARTS = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}]}
_TEXT_OR_IDS = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": ["string", "integer"]}}]}


def _invalid(message: str) -> PydanticCustomError:
    # The message goes in as a value: it may hold braces.
    return PydanticCustomError("invalid", "{reason}", {"reason": message})


class Only:
    """Annotates a field that is not built: absent, null, or one of the values that ask for nothing."""

    def __init__(self, *neutral: object) -> None:
        self._neutral = neutral

    def check(self, value: object) -> object:
        if value is None or any(type(value) is type(wanted) and value == wanted for wanted in self._neutral):
            return value
        raise PydanticCustomError("not_built", "this server does not support it yet")

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"enum": [*self._neutral, None]}


def _stop_strings(value: object) -> object:
    if value is None:
        return ()
    strings = [value] if isinstance(value, str) else value
    if not isinstance(strings, list) or len(strings) > MAX_STOP_STRINGS:
        raise _invalid(f"must be a string or a list of up to {MAX_STOP_STRINGS} strings")
    for stop in strings:
        if not isinstance(stop, str) or not 0 < len(stop) <= MAX_STOP_LENGTH:
            raise _invalid(f"each stop string must have 1 to {MAX_STOP_LENGTH} characters")
    return tuple(strings)


def _joined_text(value: object) -> object:
    if not isinstance(value, list):
        return value
    texts = []
    for part in value:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise _invalid('only parts {"type": "text", "text": …} are supported')
        texts.append(part["text"])
    return "".join(texts)


def _completion_prompt(value: object) -> object:
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str | list):
        value = value[0]  # a batch of one
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(type(token_id) is int for token_id in value):
        return tuple(value)
    if isinstance(value, list) and all(isinstance(prompt, str | list) for prompt in value):
        raise _invalid("exactly one prompt for each request is supported: a string, or one list of token ids")
    raise _invalid("must be a string or a list of token ids")


StopStrings = Annotated[
    tuple[str, ...],
    BeforeValidator(_stop_strings, json_schema_input_type=Any),
    WithJsonSchema(_TEXT_OR_TEXTS),
]
CompletionPrompt = Annotated[Any, AfterValidator(_completion_prompt), WithJsonSchema(_TEXT_OR_IDS)]
MaxTokens = Annotated[int, Field(ge=1)]


class Body(BaseModel):
    """What every body has in common: strict types, finite numbers, no unknown fields."""

    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, frozen=True, protected_namespaces=()
    )


class Message(Body):
    """One turn of a chat."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[str, BeforeValidator(_joined_text), WithJsonSchema(_TEXT_OR_PARTS)]
    name: str | None = None
    tool_call_id: str | None = None
    # An answer of this or another server, sent back as history, has these; empty they say nothing.
    refusal: Annotated[Any, Only()] = None
    audio: Annotated[Any, Only()] = None
    annotations: Annotated[Any, Only([])] = None
    tool_calls: Annotated[Any, Only([])] = None
    function_call: Annotated[Any, Only()] = None
    reasoning_content: Annotated[Any, Only("")] = None

    def for_template(self) -> dict[str, str]:
        """Return what the chat template sees."""
        seen = {"role": "system" if self.role == "developer" else self.role, "content": self.content}
        if self.name is not None:
            seen["name"] = self.name
        if self.tool_call_id is not None:
            seen["tool_call_id"] = self.tool_call_id
        return seen


Messages = Annotated[list[Message], Field(min_length=1)]


class SamplingFields(Body):
    """How to choose tokens and when to end; the same names on every route."""

    max_tokens: MaxTokens | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    stop: StopStrings = ()
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None
    stream: bool | None = None
    model: str | None = None

    frequency_penalty: Annotated[Any, Only(0, 0.0)] = None
    presence_penalty: Annotated[Any, Only(0, 0.0)] = None
    repetition_penalty: Annotated[Any, Only(1, 1.0)] = None
    logit_bias: Annotated[Any, Only({})] = None
    response_format: Annotated[Any, Only({"type": "text"})] = None


class GenerateBody(SamplingFields):
    """POST /generate: exactly one of `prompt` and `messages`."""

    prompt: Annotated[str, Field(min_length=1)] | None = None
    messages: Messages | None = None
    raw: bool = False
    background: bool = False
    priority: Annotated[int, Field(ge=0, le=9)] = 5

    logprobs: Annotated[Any, Only(False)] = None
    conversation_id: Annotated[Any, Only()] = None


class StreamOptions(Body):
    """What a stream carries besides the text."""

    include_usage: bool = False
    include_obfuscation: Annotated[Any, Only(False)] = None


class NoEffectFields(Body):
    """OpenAI fields that are accepted because they change no output here."""

    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    verbosity: Any = None


class OpenAIFields(SamplingFields, NoEffectFields):
    """What chat and text completions share."""

    stream_options: StreamOptions | None = None
    n: Annotated[Any, Only(1)] = None


class ChatBody(OpenAIFields):
    """POST /v1/chat/completions."""

    messages: Messages
    max_completion_tokens: MaxTokens | None = None

    logprobs: Annotated[Any, Only(False)] = None
    top_logprobs: Annotated[Any, Only(0)] = None
    tools: Annotated[Any, Only([])] = None
    tool_choice: Annotated[Any, Only("none", "auto")] = None
    parallel_tool_calls: Annotated[Any, Only(False, True)] = None
    functions: Annotated[Any, Only([])] = None
    function_call: Annotated[Any, Only("none", "auto")] = None
    modalities: Annotated[Any, Only(["text"])] = None
    audio: Annotated[Any, Only()] = None
    prediction: Annotated[Any, Only()] = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high"] | None = None
    web_search_options: Annotated[Any, Only()] = None


class CompletionBody(OpenAIFields):
    """POST /v1/completions; the prompt is plain text or token ids, no chat template."""

    prompt: CompletionPrompt

    logprobs: Annotated[Any, Only()] = None
    echo: Annotated[Any, Only(False)] = None
    suffix: Annotated[Any, Only("")] = None
    best_of: Annotated[Any, Only(1)] = None
