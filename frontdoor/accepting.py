"""Accepts a checked body as requests: model, limits, chat template, token count, seed, and the spool.

Every refusal happens here: a request that `accept` returns is in the spool and ends in exactly one result.
Several prompts, and several choices for a prompt, are a request each; rank 0 reads a prompt once for all its
choices. Under a known Idempotency-Key they are the earlier requests, with their seed: their ids follow from
the first one's. All routes share one draft type and convert their bodies to it.
"""

import contextlib
import dataclasses
import hashlib
import logging
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from msgspec.structs import replace

from config.context_length import ContextLength
from frontdoor.constraints import check_grammar, content_grammar
from frontdoor.encoding import Answer, Draft, Prompt, check_token_range, encode_prompt, in_worker
from frontdoor.http.errors import ContextLengthExceeded, InvalidRequest, NotFound, RingDown
from frontdoor.request_lookup import find
from frontdoor.schemas import SamplingFields
from frontdoor.served_model import check_model
from frontdoor.state import Caller, FrontDoor
from frontdoor.tools import check_tool_schemas
from prompts.formats import Tool
from spool import Request, SamplingParams, SpoolFull, SpoolUnavailable
from spool.sampling_params import make_params

MAX_REQUESTS = 128  # of one body
RANDOM_SEED_BITS = 53  # survives JSON readers that keep numbers as doubles

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Accepted:
    """A request in the spool, for the HTTP request that waits for it.

    `is_asker`: this client asked for it, so its disconnect cancels the request. `is_first`: this HTTP request
    put it into the spool. `may_return`: its client gets a grace time (`Caller`). `is_thinking`: its answer
    begins inside reasoning. `prompt`: its text, where this HTTP request has it.
    """

    id: str
    seed: int | None
    created_unix: float
    num_prompt_tokens: int = 0
    is_asker: bool = True
    is_first: bool = True
    may_return: bool = True
    is_thinking: bool = False
    prompt: str | None = None


async def accept(
    front: FrontDoor, drafts: Sequence[Draft], *, caller: Caller, num_choices: int = 1
) -> list[Accepted]:
    """Put the drafts into the spool, or find the requests that their Idempotency-Key belongs to.

    Args:
        drafts: of one body.
        num_choices: answers for each draft.

    Returns:
        The requests, all choices of the first draft first.

    Raises:
        ServiceError: refused; nothing was accepted.
    """
    key, body = caller.idempotency_key, drafts[0].sampling
    check_number(drafts, num_choices)
    submit_first = front.spool.submit
    if key is not None:  # a known key is answered in any state of the service
        body_hash = hash_body(body)
        find_first = partial(front.spool.find_first, caller.owner, key, body_hash=body_hash)
        first_id = await _call_spool(front, find_first)
        if first_id is not None:
            return await _earlier(front, first_id, drafts, caller, num_choices)
        submit_first = partial(submit_first, idempotency_key=key, body_hash=body_hash)
    check_model(front, body.model)
    front.hints.note(body)
    failure = front.ring_status.failure()
    if failure is not None:
        raise RingDown(f"the ring is down: {failure}")
    ids = [_id_of(caller.request_id, number) for number in range(len(drafts) * num_choices)]
    async with front.key_limits.admitting(caller.owner, ids, front.settings, caller.headers):
        requests, accepted = await make_requests(front, drafts, caller=caller, num_choices=num_choices)
        first_id = await _submit(front, requests, submit_first)
    front.queue_estimate.update()
    if first_id != requests[0].id:
        return await _earlier(front, first_id, drafts, caller, num_choices)
    for request in requests:
        log.info("request %s accepted", request.label)
        log.debug("request %s: %d prompt tokens", request.id, len(request.token_ids or ()))
    return accepted


def check_number(drafts: Sequence[Draft], num_choices: int) -> None:
    """Raise InvalidRequest where a body asks for too many answers."""
    num_requests = len(drafts) * num_choices
    if num_requests > MAX_REQUESTS:
        raise InvalidRequest(
            f"the body asks for {num_requests} answers; up to {MAX_REQUESTS} are allowed", param="prompt"
        )


async def _submit(
    front: FrontDoor, requests: Sequence[Request], submit_first: Callable[[Request], str]
) -> str:
    """Submit all requests or none; return the first one's id, or that of an earlier first one.

    The first comes last, because it takes the key: a retry that finds it finds the others.
    """
    others = requests[1:]
    try:
        for request in others:
            await _call_spool(front, partial(front.spool.submit, request))
        first_id = await _call_spool(front, partial(submit_first, requests[0]))
    except BaseException:
        _withdraw(front, others)
        raise
    if first_id != requests[0].id:
        _withdraw(front, others)
    return first_id


def _withdraw(front: FrontDoor, requests: Sequence[Request]) -> None:
    """Cancel requests that no client waits for; one that was not submitted is unknown to the spool."""
    for request in requests:
        with contextlib.suppress(SpoolUnavailable):  # then it is answered for nobody
            front.spool.cancel(request.id)


def _id_of(first_id: str, number: int) -> str:
    """Return the id of the request with this number among those of one body."""
    if number == 0:
        return first_id
    return hashlib.blake2b(f"{first_id}/{number}".encode(), digest_size=16).hexdigest()


def other_ids(front: FrontDoor, first_id: str) -> Iterator[str]:
    """Yield the ids of a body's other requests: further choices and prompts."""
    for number in range(1, MAX_REQUESTS):
        request_id = _id_of(first_id, number)
        if front.spool.state(request_id) is None:
            return
        yield request_id


def hash_body(body: SamplingFields) -> str:
    """Hash the fields that determine the answer, without those that choose its form.

    Values that the server chooses (a seed, a default length) are not part of the hash, so a retry matches.
    """
    asked = body.model_dump_json(exclude={"stream", "stream_options", "background"}, exclude_defaults=True)
    return hashlib.sha256(f"{type(body).__name__} {asked}".encode()).hexdigest()


async def _earlier(
    front: FrontDoor, first_id: str, drafts: Sequence[Draft], caller: Caller, num_choices: int
) -> list[Accepted]:
    """Attach to the requests that came first under this Idempotency-Key."""
    log.info("request %s is retried under its Idempotency-Key (X-Request-Id %s)", first_id, caller.http_id)
    accepted = []
    for number in range(len(drafts) * num_choices):
        found = find(front.spool, _id_of(first_id, number))
        if found is None:
            raise NotFound(
                "the result of this Idempotency-Key's request was just removed (RESULT_RETENTION_HOURS, "
                "RESULT_RETENTION_MB): retry to run it again"
            )
        earlier = Accepted(found.id, found.seed, found.created_unix, found.num_prompt_tokens, is_first=False)
        draft = drafts[number // num_choices]
        if draft.tool_use is not None and front.tokenizer.formats.reasoning is not None:
            earlier = dataclasses.replace(
                earlier, is_thinking=(await encode_prompt(front, draft)).is_thinking
            )
        accepted.append(earlier)
    return accepted


async def make_requests(
    front: FrontDoor, drafts: Sequence[Draft], *, caller: Caller, num_choices: int, seed: int | None = None
) -> tuple[list[Request], list[Accepted]]:
    """Return all requests of the drafts, and what they are when they have been submitted.

    Args:
        seed: where the body names none; None: a random one.
    """
    seed, constraints = _seed(seed), drafts[0].sampling.constraints
    content = await in_worker(front, content_grammar, constraints) if constraints else None
    prompts: list[Prompt] = []
    requests: list[Request] = []
    for draft in drafts:
        prompt = await encode_prompt(front, draft, caller.owner)
        params = replace(
            _sampling_params(front, draft, seed=seed, num_prompt_tokens=len(prompt.token_ids)),
            grammar=await _grammar(front, draft, content, is_thinking=prompt.is_thinking),
            shows_special=draft.tool_use is not None and front.tokenizer.formats.shows_special(draft.tools),
        )
        check_token_range(params.logit_bias, front.tokenizer.vocab_size, "logit_bias")
        first = Request(
            id=_id_of(caller.request_id, len(requests)),
            params=params,
            text=prompt.text,
            token_ids=tuple(prompt.token_ids),
            tokenizer_hash=front.tokenizer.hash,
            model=front.model_name,
            owner=caller.owner,
            priority=draft.priority,
            created_unix=time.time(),
            received_unix=caller.received_unix,
            client_id=caller.http_id,
            literals=prompt.literals,
        )
        prompts.append(prompt)
        requests.append(first)
        for choice in range(1, num_choices):
            request_id = _id_of(caller.request_id, len(requests))
            other = replace(params, choice=choice, prompt_logprobs=None)  # the first one's count for all
            requests.append(replace(first, id=request_id, params=other))
    accepted = [
        Accepted(
            request.id,
            request.params.seed,
            request.created_unix,
            len(request.token_ids or ()),
            may_return=caller.may_return,
            is_thinking=prompts[number // num_choices].is_thinking,
            prompt=request.text,
        )
        for number, request in enumerate(requests)
    ]
    return requests, accepted


def _seed(seed: int | None) -> int:
    return secrets.randbits(RANDOM_SEED_BITS) if seed is None else seed


async def _grammar(front: FrontDoor, draft: Draft, content: str | None, *, is_thinking: bool) -> str | None:
    """Return the grammar of an answer: of its text, and of tool calls where they are constrained."""
    use = draft.tool_use
    if not draft.tools and (content is None or (use is None and not is_thinking)):
        return content
    make = partial(
        front.tokenizer.formats.grammar,
        draft.tools,
        choice=use.choice if use is not None and use.tools else "none",
        parallel=use is not None and use.is_parallel,
        content=content,
        is_thinking=is_thinking,
    )
    return await in_worker(front, _make_checked, make, draft.tools)


def _make_checked(make: Callable[[], str | None], tools: Sequence[Tool]) -> str | None:
    grammar = make()
    if grammar is not None and tools:
        try:
            check_grammar(grammar, "tools")
        except InvalidRequest:
            check_tool_schemas(tools)  # names the tool and the place in its schema
            raise
    return grammar


def _sampling_params(front: FrontDoor, draft: Draft, *, seed: int, num_prompt_tokens: int) -> SamplingParams:
    room = _room(front.context, draft, num_prompt_tokens)
    default = room if draft.default_max_tokens is None else draft.default_max_tokens
    params = make_params(
        {**dict(draft.sampling), "max_tokens": draft.sampling.most_tokens},
        max_tokens=default,
        seed=seed,
        defaults=front.sampling_defaults if draft.has_model_sampling else None,
    )
    return replace(
        params,
        max_tokens=max(1, min(params.max_tokens, room)),
        logprobs=draft.logprobs,
        prompt_logprobs=draft.prompt_logprobs,
    )


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
        return await in_worker(front, call)
    except (SpoolFull, SpoolUnavailable) as error:
        error.retry_seconds = front.queue_estimate.retry_after_seconds()
        raise
