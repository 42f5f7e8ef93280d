"""Encodes the prompt of a draft as token ids: text, a chat by the template, or token ids as they are.

Refuses empty and far too long prompts, and chats that the template refuses. Long ones are encoded in a
thread. Knows the tokenizer and the model's context; nothing of the spool.
"""

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from frontdoor.http.errors import ContextLengthExceeded, InvalidRequest
from frontdoor.schemas import Message, SamplingFields
from frontdoor.state import FrontDoor
from frontdoor.tools import ToolUse
from prompts.formats import Tool
from prompts.tokenizer import EffortRefused, MessagesRefused, VariablesRefused

LONG_TEXT = 8192  # characters; a thread tokenizes longer texts, so that other clients need not wait
MANY_MESSAGES = 32
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Prompt:
    """An encoded prompt; text and literals as in `spool.Request`. `is_thinking`: as in `RenderedChat`."""

    text: str | None
    token_ids: Sequence[int]
    literals: tuple[int, ...] | None = None
    is_thinking: bool = False


@dataclass(frozen=True)
class Draft:
    """A request before it is counted and accepted; `prompt` is text, messages, or token ids.

    `default_max_tokens`: the answer's limit where the body names none; None: the rest of the context.
    `has_model_sampling`: whether sampling fields that the body leaves out are the model's own.
    `max_text_bytes`: the longest text, for routes with a limit in bytes. `tool_use`: set where the route
    splits the answer into calls, reasoning and text. `variables`: for the chat template.
    `is_effort_optional`: a template that does not know the effort is used without it.
    """

    prompt: str | tuple[int, ...] | Sequence[Message]
    sampling: SamplingFields
    prompt_field: str = "prompt"
    is_raw: bool = True
    priority: int = 5
    default_max_tokens: int | None = None
    has_model_sampling: bool = True
    max_text_bytes: int | None = None
    effort: str | None = None
    is_effort_optional: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    tool_use: ToolUse | None = None
    variables: dict[str, Any] | None = None

    @property
    def tools(self) -> tuple[Tool, ...]:
        return self.tool_use.tools if self.tool_use is not None else ()


async def encode_prompt(front: FrontDoor, draft: Draft, owner: str | None = None) -> Prompt:
    """Return a draft's prompt as token ids.

    Args:
        owner: whose earlier answers the chat may go on from; None: of nobody.

    Raises:
        ServiceError: the prompt is empty, too long, or refused by the chat template.
    """
    prompt = draft.prompt
    if isinstance(prompt, tuple):
        _check_token_ids(prompt, front.tokenizer.vocab_size, draft.prompt_field)
        return Prompt(None, prompt)
    if _is_short(draft, prompt):
        encoded = _encode(front, draft, owner)
    else:
        encoded = await in_worker(front, _encode, front, draft, owner)
    if not encoded.token_ids:
        raise InvalidRequest("the prompt is empty", param=draft.prompt_field)
    return encoded


def _is_short(draft: Draft, prompt: str | Sequence[Message]) -> bool:
    """Whether a prompt is encoded at once; finding that out is always quick."""
    if isinstance(prompt, str):
        return len(prompt) <= LONG_TEXT
    if draft.tools or draft.variables or len(prompt) > MANY_MESSAGES:
        return False
    has_calls = any(message.tool_calls or message.function_call for message in prompt)
    return not has_calls and sum(len(text) for message in prompt for text in message.texts()) <= LONG_TEXT


def with_suffix(front: FrontDoor, prompt: str | tuple[int, ...], suffix: str | None) -> str | tuple[int, ...]:
    """Return the prompt, or the token ids that ask for what comes between it and the suffix.

    Raises:
        InvalidRequest: the model, or this prompt, cannot have a suffix.
    """
    if not suffix:
        return prompt
    if isinstance(prompt, str) and (ids := front.tokenizer.encode_fill_in(prompt, suffix)) is not None:
        return tuple(ids)
    what = (
        "this model has no tokens for text between"
        if isinstance(prompt, str)
        else "prompts of token ids have no"
    )
    raise InvalidRequest(f"{what} 'prompt' and 'suffix'", param="suffix")


async def in_worker(front: FrontDoor, call: Callable[..., Answer], *arguments: Any) -> Answer:
    """Run a call that may take long beside the event loop."""
    return await asyncio.get_running_loop().run_in_executor(front.workers, call, *arguments)


def _encode(front: FrontDoor, draft: Draft, owner: str | None) -> Prompt:
    _check_text_length(draft)
    tokenizer = front.tokenizer
    if isinstance(draft.prompt, str):
        if draft.is_raw or not tokenizer.has_chat_template:
            _check_not_absurd(front, draft, draft.prompt)
            return Prompt(draft.prompt, tokenizer.encode_raw(draft.prompt))
        turns: list[dict[str, Any]] = [{"role": "user", "content": draft.prompt}]
    else:
        turns = [message.for_template() for message in draft.prompt if isinstance(message, Message)]
    render = partial(tokenizer.render, effort=draft.effort, tools=draft.tools, variables=draft.variables)
    try:
        chat, kept = render(turns), None
        _check_not_absurd(front, draft, chat.text)
        if owner is not None:
            kept = front.kept_turns.continue_from(turns, chat, render, draft.tools, owner)
        if kept is None or len(kept) > front.context.max_tokens // 2:
            usual = tokenizer.encode_rendered(chat.text, literals=chat.literals)
            # Kept turns have their reasoning, which templates leave out: it must not fill the context.
            if kept is None or len(kept) - len(usual) > front.context.max_tokens // 16:
                kept = usual
        return Prompt(chat.text, kept, chat.literals, chat.is_thinking)
    except EffortRefused as error:
        if draft.is_effort_optional:
            return _encode(front, replace(draft, effort=None), owner)
        raise InvalidRequest(str(error), param="reasoning_effort") from error
    except VariablesRefused as error:
        raise InvalidRequest(str(error), param="chat_template_kwargs") from error
    except MessagesRefused as error:
        raise InvalidRequest(str(error), param=draft.prompt_field) from error


def _check_text_length(draft: Draft) -> None:
    prompt, max_bytes = draft.prompt, draft.max_text_bytes
    if max_bytes is None:
        return
    messages = () if isinstance(prompt, str) else prompt
    texts = [text for message in messages if isinstance(message, Message) for text in message.texts()]
    num_bytes = sum(len(text.encode()) for text in ([prompt] if isinstance(prompt, str) else texts))
    if num_bytes > max_bytes:
        raise InvalidRequest(
            f"the text has {num_bytes} bytes, more than MAX_PROMPT_LEN_BYTES={max_bytes}. This is a limit of "
            "/generate; the routes under /v1 limit tokens instead",
            param=draft.prompt_field,
        )


def _check_not_absurd(front: FrontDoor, draft: Draft, text: str) -> None:
    """Refuse a text that cannot fit into the context, before it is tokenized."""
    num_tokens = front.tokenizer.least_tokens(text)
    if num_tokens >= front.context.max_tokens:
        raise ContextLengthExceeded(
            front.context.explain_too_long(num_tokens, is_least=True), param=draft.prompt_field
        )


def _check_token_ids(token_ids: Sequence[int], vocab_size: int, field: str) -> None:
    if not token_ids:
        raise InvalidRequest("the prompt is empty", param=field)
    check_token_range(token_ids, vocab_size, field)


def check_token_range(token_ids: Collection[int], vocab_size: int, field: str) -> None:
    if token_ids and (min(token_ids) < 0 or max(token_ids) >= vocab_size):
        raise InvalidRequest(f"the token ids of {field!r} must be from 0 to {vocab_size - 1}", param=field)
