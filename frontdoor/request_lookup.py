"""Looking up a request that somebody accepted earlier: where it is, whose it is, and its answer.

The spool is the only memory there is: what one front door accepted, every other one finds. With keys, a
request of another key does not exist. Knows the spool's files; nothing of HTTP.
"""

import re
from dataclasses import dataclass

from frontdoor.http.errors import NotFound
from spool import CorruptRequest, Request, Result, Spool, State

_ID = re.compile(r"(?:chatcmpl-|cmpl-)?([0-9a-f]{32})")
_NUM_TRIES = 3  # it may end between two looks


@dataclass(frozen=True)
class Found:
    """A request in the spool. `owner` is None where its file is damaged and nobody can tell."""

    id: str
    state: State
    owner: str | None
    seed: int | None = None
    created_unix: float = 0.0
    num_prompt_tokens: int = 0
    result: Result | None = None


def find_owned(spool: Spool, text: str, *, owner: str) -> Found:
    """Return the request of an id as a client writes it; `owner` is "" where no keys are asked for.

    Raises:
        NotFound: no id, unknown, or another key's.
        SpoolUnavailable, CorruptRequest: the disk does not let us look.
    """
    match = _ID.fullmatch(text)
    if match is None:
        raise unknown()
    found = find(spool, match[1])
    if found is None or not may_see(found, owner):
        raise unknown()
    return found


def may_see(found: Found, owner: str) -> bool:
    """Tell whether a caller may know of a request."""
    if not owner or found.owner == owner:
        return True
    # A request file that was damaged ends in an error that has no owner, and nothing of anybody's.
    return found.owner == "" and found.result is not None and found.result.error is not None


def find(spool: Spool, request_id: str) -> Found | None:
    """Find a request by its id, whoever's it is.

    Raises: SpoolUnavailable, CorruptRequest.
    """
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
            return Found(request_id, state, None)
        if state != "done" and request is not None:
            return _of_request(request, state)
    return None


def unknown() -> NotFound:
    """What a client is told of a request that it may not know of, or that nobody does."""
    limits = "RESULT_RETENTION_HOURS, RESULT_RETENTION_MB"
    return NotFound(f"no such request, or its result was removed ({limits})")


def _of_result(result: Result) -> Found:
    took = result.performance.get("total_s")
    created_unix = result.finished_unix - (took if isinstance(took, int | float) else 0.0)
    num_tokens = result.usage.prompt_tokens
    return Found(result.id, "done", result.owner, result.seed, created_unix, num_tokens, result)


def _of_request(request: Request, state: State) -> Found:
    num_tokens = len(request.token_ids or ())
    return Found(request.id, state, request.owner, request.params.seed, request.created_unix, num_tokens)
