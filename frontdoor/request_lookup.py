"""Looks up an accepted request: its state, its owner and its result.

The spool is the only memory: a request that one front door accepted, every other one finds. With API keys, a
request of another key is not found. Knows the spool's files; nothing of HTTP.
"""

import re
from dataclasses import dataclass

from frontdoor.http.errors import NotFound
from spool import CorruptRequest, Request, Result, Spool, State

ID = re.compile(r"(?:chatcmpl-|cmpl-|msg_|resp_)?([0-9a-f]{32})")
_NUM_TRIES = 3  # it may end between two reads


@dataclass(frozen=True)
class FoundRequest:
    """A request in the spool. `owner` is None where its file is damaged, so that the owner is unknown."""

    id: str
    state: State
    owner: str | None
    seed: int | None = None
    created_unix: float = 0.0
    num_prompt_tokens: int = 0
    result: Result | None = None


def find_owned(spool: Spool, text: str, *, owner: str) -> FoundRequest:
    """Return the request of an id from a client; `owner` is "" where no API keys are required.

    Raises:
        NotFound: not an id, unknown, or of another key.
        SpoolUnavailable, CorruptRequest: the disk refuses to read it.
    """
    match = ID.fullmatch(text)
    found = find(spool, match[1]) if match is not None else None
    if found is None or not may_see(found, owner):
        limits = "RESULT_RETENTION_HOURS, RESULT_RETENTION_MB"
        raise NotFound(f"there is no such request, or its result was removed ({limits})")
    return found


def may_see(found: FoundRequest, owner: str) -> bool:
    """Whether a caller may see a request."""
    if not owner or found.owner == owner:
        return True
    # A damaged request file ends in an error without an owner, which contains no text of any client.
    return found.owner == "" and found.result is not None and found.result.error is not None


def find(spool: Spool, request_id: str) -> FoundRequest | None:
    """Find a request of any owner by its id. Raises: SpoolUnavailable, CorruptRequest."""
    for _ in range(_NUM_TRIES):
        result = spool.read_result(request_id)
        if result is not None:
            return _of_result(result)
        state = spool.state(request_id)
        if state is None:
            return None
        try:
            request = spool.read_request(request_id)
        except CorruptRequest:
            return FoundRequest(request_id, state, None)
        if state != "done" and request is not None:
            return _of_request(request, state)
    return None


def _of_result(result: Result) -> FoundRequest:
    took = result.performance.get("total_s")
    created_unix = result.finished_unix - (took if isinstance(took, int | float) else 0.0)
    num_tokens = result.usage.prompt_tokens
    return FoundRequest(result.id, "done", result.owner, result.seed, created_unix, num_tokens, result)


def _of_request(request: Request, state: State) -> FoundRequest:
    num_tokens, seed = len(request.token_ids or ()), request.params.seed
    return FoundRequest(request.id, state, request.owner, seed, request.created_unix, num_tokens)
