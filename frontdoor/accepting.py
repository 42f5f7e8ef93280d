"""Accepts a checked body as a request: model, limits, chat template, token count, seed, and the spool.

Every refusal happens here: a request that `accept` returns is in the spool and ends in exactly one result.
Under a known Idempotency-Key it is the earlier request, with its seed. All routes share one draft type and
convert their bodies to it.
"""

import asyncio
import hashlib
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from msgspec.structs import replace

from config.context_length import ContextLength
from frontdoor.http.errors import ContextLengthExceeded, InvalidRequest, ModelNotFound, NotFound, RingDown
from frontdoor.request_lookup import find
from frontdoor.schemas import Message, SamplingFields
from frontdoor.state import Caller, FrontDoor
from prompts.tokenizer import EffortRefused, MessagesRefused
from spool import Request, SamplingParams, SpoolFull, SpoolUnavailable
from spool.sampling_params import make_params

LONG_TEXT_BYTES = 8192  # a thread tokenizes longer texts, so that other clients need not wait
RANDOM_SEED_BITS = 53  # survives JSON readers that keep numbers as doubles
Prompt = tuple[str | None, Sequence[int], tuple[int, ...] | None]  # text, token ids, literals of a Request

Answer = TypeVar("Answer")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Draft:
    """A request before it is counted and accepted; `prompt` is text, messages, or token ids.

    `default_max_tokens`: the answer's limit where the body names none; None: the rest of the context.
    `max_text_bytes`: the longest text, for routes with a limit in bytes.
    """

    prompt: str | tuple[int, ...] | Sequence[Message]
    sampling: SamplingFields
    prompt_field: str = "prompt"
    is_raw: bool = True
    priority: int = 5
    default_max_tokens: int | None = None
    max_text_bytes: int | None = None
    effort: str | None = None


@dataclass(frozen=True)
class Accepted:
    """A request in the spool, for the HTTP request that waits for it.

    `is_asker`: this client asked for it, so its disconnect cancels the request. `is_first`: this HTTP request
    put it into the spool. `may_return`: its client gets a grace time (`Caller`).
    """

    id: str
    seed: int | None
    created_unix: float
    num_prompt_tokens: int = 0
    is_asker: bool = True
    is_first: bool = True
    may_return: bool = True


async def accept(front: FrontDoor, draft: Draft, *, caller: Caller) -> Accepted:
    """Put the draft into the spool, or find the request that its Idempotency-Key belongs to.

    Raises:
        ServiceError: refused; nothing was accepted.
    """
    key = caller.idempotency_key
    if key is not None:  # a known key is answered in any state of the service
        find_first = partial(front.spool.find_first, caller.owner, key, body_hash=hash_body(draft.sampling))
        request_id = await _call_spool(front, find_first)
        if request_id is not None:
            return _earlier(front, request_id, caller)
    check_model(front, draft.sampling.model)
    front.hints.note(draft.sampling)
    failure = front.ring_status.failure()
    if failure is not None:
        raise RingDown(f"the ring is down: {failure}")
    request = await _make_request(front, draft, caller)
    submit = partial(front.spool.submit, request)
    if key is not None:
        submit = partial(submit, idempotency_key=key, body_hash=hash_body(draft.sampling))
    request_id = await _call_spool(front, submit)
    front.queue_estimate.update()
    if request_id != request.id:
        return _earlier(front, request_id, caller)
    log.info("request %s accepted", request.label)
    seed, num_tokens = request.params.seed, len(request.token_ids or ())
    log.debug("request %s: %d prompt tokens", request.id, num_tokens)
    return Accepted(request.id, seed, request.created_unix, num_tokens, may_return=caller.may_return)


def hash_body(body: SamplingFields) -> str:
    """Hash the fields that determine the answer, without those that choose its form.

    Values that the server chooses (a seed, a default length) are not part of the hash, so a retry matches.
    """
    asked = body.model_dump_json(exclude={"stream", "stream_options", "background"}, exclude_defaults=True)
    return hashlib.sha256(f"{type(body).__name__} {asked}".encode()).hexdigest()


def _earlier(front: FrontDoor, request_id: str, caller: Caller) -> Accepted:
    """Attach to the request that came first under this Idempotency-Key."""
    log.info("request %s is retried under its Idempotency-Key (X-Request-Id %s)", request_id, caller.http_id)
    found = find(front.spool, request_id)
    if found is None:
        raise NotFound(
            "the result of this Idempotency-Key's request was just removed (RESULT_RETENTION_HOURS, "
            "RESULT_RETENTION_MB): retry to run it again"
        )
    return Accepted(found.id, found.seed, found.created_unix, found.num_prompt_tokens, is_first=False)


def check_model(front: FrontDoor, name: str | None) -> None:
    """Accept the short and the full name of the model, its aliases, and no name at all.

    Raises:
        ModelNotFound: another name.
    """
    served, aliases = front.model_name, front.settings.model_alias_list
    if name is not None and name not in (served, front.settings.model_repo, *aliases) and "*" not in aliases:
        raise ModelNotFound(
            f"this server serves the model {served!r}; MODEL_ALIASES in .env adds other names", param="model"
        )


async def _make_request(front: FrontDoor, draft: Draft, caller: Caller) -> Request:
    text, token_ids, literals = await _tokens(front, draft)
    return Request(
        id=caller.request_id,
        params=_sampling_params(draft, room=_room(front.context, draft, len(token_ids))),
        text=text,
        token_ids=tuple(token_ids),
        tokenizer_hash=front.tokenizer.hash,
        model=front.model_name,
        owner=caller.owner,
        priority=draft.priority,
        created_unix=time.time(),
        received_unix=caller.received_unix,
        client_id=caller.http_id,
        literals=literals,
    )


async def _tokens(front: FrontDoor, draft: Draft) -> Prompt:
    prompt = draft.prompt
    if isinstance(prompt, tuple):
        _check_token_ids(prompt, front.tokenizer.vocab_size, draft.prompt_field)
        return None, prompt, None
    num_bytes = _check_text_length(draft, prompt)
    if num_bytes > LONG_TEXT_BYTES:
        loop = asyncio.get_running_loop()
        encoded = await loop.run_in_executor(front.workers, _encode, front, draft)
    else:
        encoded = _encode(front, draft)
    if not encoded[1]:
        raise InvalidRequest("the prompt is empty", param=draft.prompt_field)
    return encoded


def _encode(front: FrontDoor, draft: Draft) -> Prompt:
    tokenizer = front.tokenizer
    if isinstance(draft.prompt, str):
        if draft.is_raw or not tokenizer.has_chat_template:
            _check_not_absurd(front, draft, draft.prompt)
            return draft.prompt, tokenizer.encode_raw(draft.prompt), None
        turns: list[dict[str, Any]] = [{"role": "user", "content": draft.prompt}]
    else:
        turns = [message.for_template() for message in draft.prompt if isinstance(message, Message)]
    try:
        chat = tokenizer.render(turns, draft.effort)
        _check_not_absurd(front, draft, chat.text)
        return chat.text, tokenizer.encode_rendered(chat.text, literals=chat.literals), chat.literals
    except EffortRefused as error:
        raise InvalidRequest(str(error), param="reasoning_effort") from error
    except MessagesRefused as error:
        raise InvalidRequest(str(error), param=draft.prompt_field) from error


def _check_text_length(draft: Draft, prompt: str | Sequence[Message]) -> int:
    texts = [prompt] if isinstance(prompt, str) else [text for message in prompt for text in message.texts()]
    num_bytes, max_bytes = sum(len(text.encode()) for text in texts), draft.max_text_bytes
    if max_bytes is not None and num_bytes > max_bytes:
        raise InvalidRequest(
            f"the text has {num_bytes} bytes, more than MAX_PROMPT_LEN_BYTES={max_bytes}. This is a limit of "
            "/generate; the routes under /v1 limit tokens instead",
            param=draft.prompt_field,
        )
    return num_bytes


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
    if min(token_ids) < 0 or max(token_ids) >= vocab_size:
        raise InvalidRequest(f"token ids must be from 0 to {vocab_size - 1}", param=field)


def _sampling_params(draft: Draft, *, room: int) -> SamplingParams:
    default = room if draft.default_max_tokens is None else draft.default_max_tokens
    params = make_params(
        {**dict(draft.sampling), "max_tokens": draft.sampling.most_tokens},
        max_tokens=default,
        seed=secrets.randbits(RANDOM_SEED_BITS),
    )
    return replace(params, max_tokens=min(params.max_tokens, room))


def _room(context: ContextLength, draft: Draft, num_prompt_tokens: int) -> int:
    """Return the most tokens that the answer may have."""
    if num_prompt_tokens >= context.max_tokens:
        raise ContextLengthExceeded(context.explain_too_long(num_prompt_tokens), param=draft.prompt_field)
    return context.max_tokens - num_prompt_tokens


async def _call_spool(front: FrontDoor, call: Callable[[], Answer]) -> Answer:
    """Call the spool; where it refuses, add an estimate for Retry-After."""
    try:
        if front.settings.spool_durability == "process":
            return call()
        # fsync may take long
        return await asyncio.get_running_loop().run_in_executor(front.workers, call)
    except (SpoolFull, SpoolUnavailable) as error:
        error.retry_seconds = front.queue_estimate.retry_after_seconds()
        raise
