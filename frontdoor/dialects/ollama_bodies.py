"""Ollama's bodies (api/types.go of Ollama 0.33): a chat, a prompt, the name of a model.

A chat or a prompt becomes a draft. Options that steer Ollama's memory or its other samplers are hints: they
change no output here. No list of messages, or an empty prompt, only asks to load the model.
"""

from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from frontdoor.chat_request import make_body, make_draft
from frontdoor.dialects.dialect import DialectBody
from frontdoor.encoding import Draft
from frontdoor.http.errors import InvalidRequest
from frontdoor.schemas import (
    Body,
    ChatBody,
    ChatLogprobs,
    GenerateBody,
    Number,
    Only,
    PastFields,
    StopStrings,
    ToolCalls,
)
from frontdoor.tools import ToolUse
from spool.sampling_params import NumberField

NUM_PREDICT = NumberField(-2, 2**63 - 1, is_whole=True)  # up to 0: no limit but the context
LEVELS = ("low", "medium", "high", "max")
USUAL_LEVEL = "medium"  # what Ollama makes of `think: true`

Name = Annotated[str, Field(min_length=1)]
Images = Annotated[list[Any] | None, Only([])]
Text = Annotated[str | None, Only("")]


class OptionHints(Body):
    """Options without an effect here; each name is logged once."""

    num_ctx: Any = None
    num_keep: Any = None
    num_batch: Any = None
    num_gpu: Any = None
    main_gpu: Any = None
    num_thread: Any = None
    numa: Any = None
    low_vram: Any = None
    f16_kv: Any = None
    use_mmap: Any = None
    use_mlock: Any = None
    draft_num_predict: Any = None
    repeat_last_n: Any = None
    penalize_newline: Any = None
    mirostat_tau: Any = None
    mirostat_eta: Any = None


class Options(OptionHints):
    """`options` of a body."""

    num_predict: Annotated[int | None, Number(NUM_PREDICT)] = None
    temperature: Annotated[float | None, Number("temperature")] = None
    top_k: Annotated[int | None, Number("top_k")] = None
    top_p: Annotated[float | None, Number("top_p")] = None
    min_p: Annotated[float | None, Number("min_p")] = None
    seed: Annotated[int | None, Number("seed")] = None
    stop: StopStrings = None
    repeat_penalty: Annotated[float | None, Number(NumberField(0, 2))] = None  # 0 is none: litellm
    presence_penalty: Annotated[float | None, Number("presence_penalty")] = None
    frequency_penalty: Annotated[float | None, Number("frequency_penalty")] = None

    typical_p: Annotated[Any, Only(1)] = None
    tfs_z: Annotated[Any, Only(1)] = None
    mirostat: Annotated[Any, Only(0)] = None
    vocab_only: Annotated[Any, Only(False)] = None
    logits_all: Annotated[Any, Only(False)] = None
    embedding_only: Annotated[Any, Only(False)] = None

    def sampling(self) -> dict[str, Any]:
        """Return the sampling fields by this server's names."""
        return {
            "max_tokens": self.num_predict if (self.num_predict or 0) > 0 else None,
            "repetition_penalty": self.repeat_penalty or None,
            **{name: getattr(self, name) for name in _SAME_NAMES},
        }


_SAME_NAMES = (
    "temperature", "top_k", "top_p", "min_p", "seed", "stop", "presence_penalty", "frequency_penalty",
)  # fmt: skip


class OllamaHints(Body):
    """Fields of a body without an effect here; each name is logged once."""

    keep_alive: Any = None
    truncate: bool | None = None
    shift: bool | None = None


class OllamaBody(OllamaHints, ChatLogprobs, DialectBody):
    """What chats and prompts share."""

    model: Name
    stream: bool | None = None
    format: Literal["", "json"] | dict[str, Any] | None = None
    options: Options | None = None
    think: bool | Literal["low", "medium", "high", "max"] | None = None

    @field_validator("format", mode="before")
    @classmethod
    def _is_format(cls, value: object) -> object:
        if value is None or isinstance(value, dict) or value in ("", "json"):
            return value
        raise _invalid('must be "json" or a JSON schema')

    @field_validator("think", mode="before")
    @classmethod
    def _is_think(cls, value: object) -> object:
        if value is None or isinstance(value, bool) or value in LEVELS:
            return value
        raise _invalid(f"must be true, false, or one of {', '.join(LEVELS)}")

    @property
    def is_streamed(self) -> bool:
        return self.stream is not False

    @property
    def effort(self) -> str | None:
        """The reasoning effort; None: the chat template's own."""
        if isinstance(self.think, bool):
            return USUAL_LEVEL if self.think else "none"
        return self.think

    def hints(self) -> set[str]:
        """Return the names of hints that the client sent."""
        sent = self.model_fields_set & OllamaHints.model_fields.keys()
        options = self.options.model_fields_set if self.options is not None else set()
        return sent | (options & OptionHints.model_fields.keys())

    def sampling(self) -> dict[str, Any]:
        """Return the sampling fields, the logprobs and the constraint by this server's names."""
        chosen = self.options.sampling() if self.options is not None else {}
        asked = {**chosen, "logprobs": self.logprobs, "top_logprobs": self.top_logprobs}
        if self.format == "json":
            asked["response_format"] = {"type": "json_object"}
        elif isinstance(self.format, dict):
            described = {"name": "format", "schema": self.format}
            asked["response_format"] = {"type": "json_schema", "json_schema": described}
        return asked


class OllamaMessage(PastFields):
    """One turn of a chat. Its calls and results may have no ids."""

    role: str
    content: str | None = None
    thinking: str | None = None
    images: Images = None
    tool_calls: ToolCalls = None
    tool_name: str | None = None
    tool_call_id: str | None = None
    name: str | None = None

    def turn(self) -> dict[str, Any]:
        """Return the turn in OpenAI's form."""
        has_text = self.content is not None or self.role.lower() in ("assistant", "tool")
        turn = {
            "role": self.role.lower(),
            "content": self.content if has_text else "",
            "reasoning_content": self.thinking,
            "tool_calls": self.tool_calls,
            "tool_call_id": self.tool_call_id,
            "name": self.tool_name or self.name,
        }
        return {name: value for name, value in turn.items() if value is not None}


class OllamaChatBody(OllamaBody):
    """POST /api/chat."""

    messages: list[OllamaMessage] | None = None
    tools: Any = None  # as OpenAI's, and checked as those

    @property
    def is_empty(self) -> bool:
        return not self.messages

    def draft(self) -> Draft:
        turns = (message.turn() for message in self.messages or ())
        asked = {
            **self.sampling(),
            "messages": list(with_call_ids(turns)),
            "tools": self.tools,
            "reasoning_effort": self.effort,
        }
        return make_draft(make_body(ChatBody, asked))


class Generation(GenerateBody):
    """The sampling fields of a prompt, with all else that determines the answer."""

    suffix: str | None = None
    effort: str | None = None


class OllamaGenerateBody(OllamaBody):
    """POST /api/generate."""

    prompt: str | None = None
    suffix: str | None = None
    system: str | None = None
    raw: bool | None = None
    images: Images = None
    template: Text = None
    context: Annotated[list[Any] | None, Only([])] = None

    @property
    def is_empty(self) -> bool:
        return not self.prompt

    def draft(self) -> Draft:
        """Return the draft; the route puts the suffix into its prompt."""
        way = "raw" if self.raw else "suffix" if self.suffix else None
        if way is not None and (self.system or self.think):
            other = "system" if self.system else "think"
            raise InvalidRequest(f"'{way}' continues a plain text: it goes without {other!r}", param=other)
        system = [{"role": "system", "content": self.system}] if self.system else []
        turns = [*system, {"role": "user", "content": self.prompt}]
        asked = {
            **self.sampling(),
            "prompt": self.prompt,
            "messages": turns if system else None,
            "raw": way is not None,
            "suffix": self.suffix,
            "effort": self.effort,
        }
        sampling = make_body(Generation, asked)
        return Draft(
            prompt=sampling.messages or self.prompt or "",
            sampling=sampling,
            is_raw=way is not None,
            effort=None if way else self.effort,
            logprobs=self.num_alternatives,
            tool_use=None if way else ToolUse(),
        )


class OllamaShowBody(Body):
    """POST /api/show; `name` is the older name of `model`."""

    model: str | None = None
    name: str | None = None
    verbose: bool | None = None
    system: Text = None
    template: Text = None
    options: Annotated[dict[str, Any] | None, Only({})] = None


def with_call_ids(turns: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the turns of a chat with ids for all calls and results.

    A result without one belongs to the first open call of its tool, else to the first open call.
    """
    open_calls: list[tuple[str, str]] = []  # id and name
    num_calls = 0
    for turn in turns:
        if turn.get("tool_calls"):
            calls = []
            for call in turn["tool_calls"]:
                num_calls += 1
                calls.append({"id": f"call_{num_calls}", **call})
            open_calls = [(call["id"], call["function"]["name"]) for call in calls]
            yield {**turn, "tool_calls": calls}
        elif turn["role"] == "tool" and open_calls:
            known = turn.get("tool_call_id")
            named = known or turn.get("name")
            answered = next((each for each in open_calls if named in each), open_calls[0])
            open_calls.remove(answered)
            yield {"tool_call_id": answered[0], **turn}
        else:
            yield turn


def _invalid(message: str) -> PydanticCustomError:
    return PydanticCustomError("invalid", "{reason}", {"reason": message})
