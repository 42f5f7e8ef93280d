"""The bodies that clients may send, and the form of each field.

No field is silently ignored: unknown fields are refused by name, and unsupported fields unless their value is
neutral (`Only`). Fields without an effect are in `NoEffectFields`, and those of popular clients in `Hints`
and `PastFields`; docs/request-bodies.md lists them. Types are strict (no "5" for 5, but 16.0 for 16), numbers
finite; spool/sampling_params.py has their bounds. Knows no limits of settings or tokenizer: accepting.py
checks those.
"""

from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, TypeGuard

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from frontdoor.tool_history import read_tool_calls
from frontdoor.tools import CHOICES, read_tool_choice, read_tools
from prompts.formats import Tool
from spool.sampling_params import ANSWER_FIELDS, NUMBER_FIELDS, NumberField, read_logit_bias, read_stop

_MAX_INT = 2**63 - 1
_CONSTRAINTS = (
    "response_format",
    "structured_outputs",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
)
_TEXT_OR_TEXTS = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
_TEXT_OR_PARTS = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}]}
_TEXT_OR_IDS = {
    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": ["string", "integer", "array"]}}]
}


def _invalid(message: str) -> PydanticCustomError:
    # The message goes in as a value: it may hold braces.
    return PydanticCustomError("invalid", "{reason}", {"reason": message})


def _worded(read: Callable[[object], Any]) -> Callable[[object], Any]:
    """Use the message of a ValueError unchanged; null counts as missing."""

    def check(value: object) -> Any:
        if value is None:
            return None
        try:
            return read(value)
        except ValueError as error:
            raise _invalid(str(error)) from None

    return check


class Number:
    """Annotates a number of a request with its bounds, which spool/sampling_params.py names."""

    def __init__(self, field: str | NumberField) -> None:
        self._field = (NUMBER_FIELDS | ANSWER_FIELDS)[field] if isinstance(field, str) else field  # type: ignore[operator]
        self._check = _worded(self._field.read)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._check)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        kind = "integer" if self._field.is_whole else "number"
        bounds = {"type": kind, "minimum": self._field.low, "maximum": self._field.high}
        return {"anyOf": [bounds, {"type": "null"}]}


class Only:
    """Annotates an unsupported field: it must be absent, null, or one of the neutral values."""

    def __init__(self, *neutral: object) -> None:
        self._neutral = neutral

    def check(self, value: object) -> object:
        if value is None or any(
            _kind(value) is _kind(wanted) and value == wanted for wanted in self._neutral
        ):
            return value
        raise PydanticCustomError("not_built", "this server does not support it yet")

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"enum": [*self._neutral, None]}


def _kind(value: object) -> type:
    return float if type(value) is int else type(value)  # 1.0 is 1, True is not


def _joined_text(value: object) -> object:
    if not isinstance(value, list):
        return value
    texts = []
    for part in value:
        kind = part.get("type") if isinstance(part, dict) else None
        text = part.get(kind) if kind in ("text", "refusal") else None
        if not isinstance(text, str):
            raise _invalid('only parts {"type": "text", "text": …} are supported')
        texts.append(text)
    return "".join(texts)


def _completion_prompts(value: object) -> tuple[str | tuple[int, ...], ...]:
    """Return the prompts: one or several, each a string or token ids."""
    if isinstance(value, str) or _is_ids(value):
        value = [value]
    if not isinstance(value, list) or not value:
        raise _invalid("must be a string, a list of token ids, or a list of those")
    prompts: list[str | tuple[int, ...]] = []
    for prompt in value:
        if isinstance(prompt, str):
            prompts.append(prompt)
        elif _is_ids(prompt):
            prompts.append(tuple(prompt))
        else:
            raise _invalid("each prompt must be a string or a list of token ids")
    return tuple(prompts)


def _token_ids(value: object) -> tuple[int, ...]:
    if value == [] or _is_ids(value):
        return tuple(value)
    raise _invalid("must be a list of token ids")


def _is_ids(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and bool(value) and all(type(token_id) is int for token_id in value)


def _raw(read: Callable[[object], Any], schema: dict[str, Any]) -> tuple[Any, ...]:
    """Annotate a field that a function reads; `schema` describes it for the API page."""
    described = WithJsonSchema({"anyOf": [schema, {"type": "null"}]})
    return BeforeValidator(_worded(read), json_schema_input_type=Any), described


_FUNCTION = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
_TOOL = {
    "type": "object",
    "properties": {"type": {"const": "function"}, "function": _FUNCTION},
    "required": ["type", "function"],
}
_TOOLS = {"type": "array", "items": _TOOL}
_TOOL_CHOICE = {"anyOf": [{"enum": [*CHOICES]}, _TOOL]}
StopStrings = Annotated[tuple[str, ...] | None, *_raw(read_stop, _TEXT_OR_TEXTS)]
LogitBias = Annotated[
    dict[int, float] | None,
    *_raw(read_logit_bias, {"type": "object", "additionalProperties": {"type": "number"}}),
]
CompletionPrompts = Annotated[Any, AfterValidator(_completion_prompts), WithJsonSchema(_TEXT_OR_IDS)]
TokenIds = Annotated[
    Any,
    AfterValidator(_token_ids),
    WithJsonSchema({"type": "array", "items": {"type": "integer", "minimum": 0}}),
]
MaxTokens = Annotated[int | None, Number("max_tokens")]
ToolCalls = Annotated[
    tuple[dict[str, Any], ...] | None,
    *_raw(read_tool_calls, {"type": "array", "items": {"type": "object"}}),
]


Metadata = Annotated[
    dict[
        Annotated[str, Field(max_length=64)],
        Annotated[str, Field(max_length=512)],
    ]
    | None,
    Field(max_length=16),
]


class Body(BaseModel):
    """The base of every body: strict types, finite numbers, no unknown fields."""

    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, frozen=True, protected_namespaces=()
    )


class PastFields(Body):
    """Fields that SDKs send back with a turn of the history, and that no chat template reads."""

    id: Any = None
    type: Any = None
    status: Any = None
    index: Any = None
    parsed: Any = None
    audio: Any = None
    annotations: Any = None
    reasoning_details: Any = None
    thinking_blocks: Any = None
    provider_specific_fields: Any = None
    cache_control: Any = None
    metadata: Any = None
    finish_reason: Any = None
    created_at: Any = None
    timestamp: Any = None


class Message(PastFields):
    """One turn of a chat; an assistant's or a tool's may have no text."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Annotated[str | None, BeforeValidator(_joined_text), WithJsonSchema(_TEXT_OR_PARTS)] = Field(
        None, validate_default=True
    )
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: ToolCalls = None
    function_call: Any = None
    reasoning_content: str | None = None
    reasoning: Any = None
    refusal: str | None = None

    @field_validator("content")
    @classmethod
    def _has_text(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None and info.data.get("role") in ("system", "developer", "user"):
            raise _invalid("must be a string or a list of text parts")
        return value

    @field_validator("function_call")
    @classmethod
    def _is_function_call(cls, value: object) -> tuple[dict[str, Any], ...] | None:
        """Read the older form of a tool call."""
        called: tuple[dict[str, Any], ...] | None = _worded(read_tool_calls)(value and [{"function": value}])
        return called

    @property
    def _thoughts(self) -> str | None:
        return self.reasoning_content or (self.reasoning if isinstance(self.reasoning, str) else None)

    def texts(self) -> Iterator[str]:
        """Yield all texts that may be long."""
        yield self.content or self.refusal or ""
        yield self._thoughts or ""
        for call in (*(self.tool_calls or ()), *(self.function_call or ())):
            yield str(call["function"]["arguments"])

    def for_template(self) -> dict[str, Any]:
        """Return the turn for the chat template; content is None where it has only tool calls."""
        calls = self.tool_calls or self.function_call
        seen: dict[str, Any] = {
            "role": {"developer": "system", "function": "tool"}.get(self.role, self.role),
            "content": self.content or self.refusal or (None if calls else ""),
            "name": self.name,
            "tool_call_id": self.tool_call_id,
            "tool_calls": calls and list(calls),
            "reasoning_content": self._thoughts,
        }
        return {name: value for name, value in seen.items() if value is not None or name == "content"}


Messages = Annotated[list[Message], Field(min_length=1)]


class Hints(Body):
    """Fields of popular clients that change no output here; each name is logged once."""

    keep_alive: Any = None
    cache_prompt: Any = None
    num_ctx: Any = None
    session_id: Any = None
    chat_id: Any = None
    extra_headers: Any = None
    extra_query: Any = None
    timeout: Any = None
    repeat_penalty: Annotated[Any, Only(1)] = None
    repeat_last_n: Any = None
    length_penalty: Annotated[Any, Only(1)] = None
    min_tokens: Annotated[Any, Only(0)] = None
    use_beam_search: Annotated[Any, Only(False)] = None
    add_generation_prompt: Annotated[Any, Only(True)] = None
    skip_special_tokens: Annotated[Any, Only(True)] = None
    spaces_between_special_tokens: Annotated[Any, Only(True)] = None
    include_stop_str_in_output: Annotated[Any, Only(False)] = None


class SamplingFields(Hints):
    """Sampling and limits; the same names on every route."""

    max_tokens: MaxTokens = None
    max_completion_tokens: MaxTokens = None
    temperature: Annotated[float | None, Number("temperature")] = None
    top_p: Annotated[float | None, Number("top_p")] = None
    top_k: Annotated[int | None, Number("top_k")] = None
    min_p: Annotated[float | None, Number("min_p")] = None
    stop: StopStrings = None
    seed: Annotated[int | None, Number("seed")] = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    model: str | None = None

    frequency_penalty: Annotated[float | None, Number("frequency_penalty")] = None
    presence_penalty: Annotated[float | None, Number("presence_penalty")] = None
    repetition_penalty: Annotated[float | None, Number("repetition_penalty")] = None
    logit_bias: LogitBias = None

    n: Annotated[int | None, Number("n")] = None
    response_format: Any = None
    structured_outputs: Any = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None

    @property
    def constraints(self) -> dict[str, Any]:
        """The fields that constrain the answer's text, as the client sent them."""
        given = {name: getattr(self, name) for name in _CONSTRAINTS}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def most_tokens(self) -> int | None:
        """The answer's limit under either name; the newer name wins."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


class ChatLogprobs(Body):
    """Logprobs as chats ask for them."""

    logprobs: bool | None = None
    top_logprobs: Annotated[int | None, Number("top_logprobs")] = None

    @property
    def num_alternatives(self) -> int | None:
        """How many alternatives each token's logprobs have; None: no logprobs."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @field_validator("top_logprobs")
    @classmethod
    def _has_logprobs(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value and not info.data.get("logprobs"):
            raise _invalid("needs logprobs: true")
        return value


class GenerateBody(SamplingFields, ChatLogprobs):
    """POST /generate: exactly one of `prompt` and `messages`."""

    prompt: Annotated[str, Field(min_length=1)] | None = None
    messages: Messages | None = None
    raw: bool | None = None
    background: bool | None = None
    priority: Annotated[int | None, Number("priority")] = None

    conversation_id: Annotated[Any, Only()] = None


class StreamOptions(Body):
    """The additional parts of a stream."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: Annotated[Any, Only(False)] = None


class NoEffectFields(Body):
    """OpenAI fields that change no output here."""

    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_options: Any = None
    prompt_cache_retention: Any = None
    verbosity: Any = None


class OpenAIFields(SamplingFields, NoEffectFields):
    """The fields that chat and text completions share."""

    stream_options: StreamOptions | None = None


class ChatBody(OpenAIFields, ChatLogprobs):
    """POST /v1/chat/completions."""

    messages: Messages

    tools: Annotated[tuple[Tool, ...] | None, *_raw(read_tools, _TOOLS)] = None
    tool_choice: Annotated[str | tuple[str] | None, *_raw(read_tool_choice, _TOOL_CHOICE)] = None
    parallel_tool_calls: bool | None = None
    functions: Annotated[Any, Only([])] = None
    function_call: Annotated[Any, Only("none", "auto")] = None
    modalities: Annotated[Any, Only(["text"])] = None
    audio: Annotated[Any, Only()] = None
    prediction: Annotated[Any, Only()] = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    moderation: Annotated[Any, Only()] = None
    web_search_options: Annotated[Any, Only()] = None


class CompletionBody(OpenAIFields):
    """POST /v1/completions; each prompt is plain text or token ids, no chat template.

    With `echo` the answer begins with the prompt, and may have no token of its own (`max_tokens` 0).
    """

    prompt: CompletionPrompts
    max_tokens: Annotated[int | None, Number(NumberField(0, _MAX_INT, is_whole=True))] = None
    suffix: str | None = None
    echo: bool | None = None
    logprobs: Annotated[int | None, Number(NumberField(0, 5, is_whole=True))] = None
    best_of: Annotated[int | None, Number("n")] = None


class TokenizeBody(NoEffectFields):
    """POST /tokenize: exactly one of `prompt` and `messages`."""

    model: str | None = None
    prompt: str | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = None
    tools: Annotated[tuple[Tool, ...] | None, *_raw(read_tools, _TOOLS)] = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: Annotated[Any, Only(True)] = None
    return_token_strs: bool | None = None


class DetokenizeBody(NoEffectFields):
    """POST /detokenize."""

    model: str | None = None
    tokens: TokenIds


class ExpiresAfter(Body):
    """When a file expires."""

    anchor: Literal["created_at"]
    seconds: int


class BatchBody(Body):
    """POST /v1/batches."""

    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: Metadata = None
    output_expires_after: ExpiresAfter | None = None
