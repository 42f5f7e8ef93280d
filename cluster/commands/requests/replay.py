"""`replay ID`: runs a finished request again from its kept files, and shows the first token that differs.

asked/{id}.json has the request (prompt or ids, params, seed); stream/{id} and done/{id}.json have its tokens.
All are kept for RESULT_RETENTION_HOURS, or less if they outgrow RESULT_RETENTION_MB. The new run is a request
of its own, with the same owner, in the same queue; the old one is only read. Exit codes: 0 the same tokens, 1
a difference, 2 it cannot be replayed. Needs no front door. Knows nothing of how tokens are computed.
"""

from __future__ import annotations

import json
import re
import select
import time
from collections.abc import Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from cluster.commands.requests.submit import open_spool
from cluster.errors import ClusterError
from cluster.supervisor.service import STALE_S, read_service
from cluster.terminal import Terminal
from config import Settings
from config.run_files import number
from spool import (
    CorruptRequest,
    Doorbell,
    LogCut,
    LogHeader,
    Request,
    Result,
    Spool,
    SpoolError,
    TokenRecord,
    make_door_name,
    make_id,
)

LOOK_INTERVAL_S = 1.0
NUM_CONTEXT_CHARACTERS = 120
# A token's text may come out with a later token: incomplete UTF-8 and possible stop strings are held back.
MAX_TOKENS_AFTER = 8
NEAR_TIES = (
    "A difference alone proves no fault: tokens that are almost equally likely may change places when a "
    "prompt runs in another batch, or comes in part from the prefix cache."
)
_ID = re.compile(r"(?:chatcmpl-|cmpl-)?([0-9a-f]{32})")


class ReplayRefused(ClusterError):
    """The request cannot be replayed here, or the new run failed; the message says why."""

    exit_code = 2


@dataclass(frozen=True)
class Run:
    """One answer to a request; `is_whole` is False if it was cancelled or is still running."""

    tokens: list[TokenRecord]
    header: LogHeader | None
    is_whole: bool


def replay(settings: Settings, terminal: Terminal, text: str) -> int:
    """Run a request again and show the first difference; 0 without one, else 1.

    Raises:
        ReplayRefused: unknown id, not finished, no longer kept, another model, or nothing runs.
    """
    if not settings.spool_dir.is_dir():
        raise ReplayRefused(f"there is no spool in STATE_DIR={settings.state_dir}: no request was made here")
    try:
        spool = open_spool(settings)
        request, then = read_original(spool, text, settings.result_retention_hours)
        check_service(settings, request)
        return Replay(settings, spool, terminal, request, then).run()
    except SpoolError as error:
        raise ReplayRefused(f"the spool refuses: {error}") from error


def read_original(spool: Spool, text: str, retention_hours: float) -> tuple[Request, Run]:
    """Read the request and the answer of an id as clients write it. Raises ReplayRefused."""
    match = _ID.fullmatch(text)
    if match is None:
        raise ReplayRefused(f"{text[:80]!r} is no request id: an id has 32 characters of 0-9a-f")
    state = spool.state(match[1])
    if state is None:
        raise ReplayRefused(
            f"no request {match[1]}, or it ended more than RESULT_RETENTION_HOURS={retention_hours:g} ago, "
            "or RESULT_RETENTION_MB has removed its result earlier"
        )
    if state != "done":
        raise ReplayRefused(f"request {match[1]} is {state}: it can be replayed when it has ended")
    try:
        request, result = spool.read_request(match[1]), spool.read_result(match[1])
    except CorruptRequest as error:
        raise ReplayRefused(f"the files of request {match[1]} are damaged: {error}") from error
    if request is None or result is None:
        raise ReplayRefused(
            f"the answer to request {match[1]} exists, but its request file does not: an earlier release, or "
            "a full disk, kept none"
        )
    if result.error is not None:
        raise ReplayRefused(f"request {match[1]} has no answer to compare with: {result.error['message']}")
    if not result.token_ids:
        raise ReplayRefused(f"request {match[1]} was cancelled before its first token: nothing to compare")
    reader = spool.open_log(match[1])
    logged = reader.read_new()
    return request, Run(complete(logged, result), reader.header, result.finish_reason != "cancelled")


def complete(logged: Sequence[TokenRecord], result: Result) -> list[TokenRecord]:
    """All tokens of an answer: from the log, and what a damaged log lacks from the result."""
    tokens = [token for token, id in zip(logged, result.token_ids, strict=False) if token.token_id == id]
    text = result.text[sum(len(token.text) for token in tokens) :]
    for index in range(len(tokens), len(result.token_ids)):
        tokens.append(TokenRecord(index, result.token_ids[index], text))
        text = ""
    return tokens


def check_service(settings: Settings, request: Request) -> None:
    """Refuse if nothing runs, or another model is served. Raises ReplayRefused."""
    service = read_service(settings)
    if not is_served(settings):
        raise ReplayRefused("nothing is running: ./launch.sh start")
    served = service.ring.get("model") or settings.model_name
    if served != request.model:
        raise ReplayRefused(
            f"the model changed: the request was for {request.model!r}, {served!r} is served now"
        )


def is_served(settings: Settings) -> bool:
    """Whether a supervisor lives, or a rank 0 without one writes its status."""
    service = read_service(settings)
    silent_s = time.time() - number(service.ring.get("updated_unix"))
    return service.holder is not None or (silent_s < STALE_S and service.ring.get("phase") != "stopped")


def find_difference(then: Run, now: Run) -> int | None:
    """The index of the first token that differs or that one of the runs lacks; None without one."""
    for index, (old, new) in enumerate(zip(then.tokens, now.tokens, strict=False)):
        if old.token_id != new.token_id:
            return index
    num_then, num_now = len(then.tokens), len(now.tokens)
    if (num_now > num_then and then.is_whole) or (num_now < num_then and now.is_whole):
        return min(num_then, num_now)
    return None


class Replay:
    """One new run of a request, compared with the old one while it runs."""

    def __init__(
        self, settings: Settings, spool: Spool, terminal: Terminal, request: Request, then: Run
    ) -> None:
        self._settings, self._spool, self._terminal = settings, spool, terminal
        self._then = then
        self._request = replace(
            request,
            id=make_id(),
            created_unix=time.time(),
            received_unix=0.0,
            client_id=f"replay:{request.id}",
        )
        self._log = spool.open_log(self._request.id)
        self._tokens: list[TokenRecord] = []

    def run(self) -> int:
        """Submit, compare and print; 0 if all tokens are the same, else 1."""
        with self._spool.listen(make_door_name()) as bell:
            self._spool.submit(self._request)
            self._terminal.line(f"request {self._request.id} repeats {len(self._then.tokens)} tokens")
            try:
                difference, now = self._follow(bell)
            finally:
                self._spool.cancel(self._request.id)  # no effect on a finished request
        if difference is None:
            until = "" if self._then.is_whole else ", up to where it was cancelled"
            text = f"identical: {len(self._then.tokens)} tokens{until}"
            self._terminal.line(self._terminal.colored(text, "green"))
            return 0
        self._show(difference, now)
        return 1

    def _follow(self, bell: Doorbell) -> tuple[int | None, Run]:
        """Wait until the runs differ, or the new one has reached the end of the old one."""
        while True:
            now = self._look()
            difference = find_difference(self._then, now)
            num_after = len(now.tokens) - (difference if difference is not None else len(now.tokens))
            if now.is_whole or num_after >= MAX_TOKENS_AFTER:
                return difference, now
            is_over = not self._then.is_whole and len(now.tokens) >= len(self._then.tokens)
            if difference is None and is_over:
                return None, now
            self._show_progress(len(now.tokens))
            select.select([bell], [], [], LOOK_INTERVAL_S)
            if not bell.drain() and not is_served(self._settings):
                raise ReplayRefused("the service has ended: ./launch.sh start, then replay again")

    def _look(self) -> Run:
        """Read the new run so far. Raises ReplayRefused if it failed."""
        result = self._spool.read_result(self._request.id)
        try:
            self._tokens += self._log.read_new()
        except LogCut:
            self._tokens.clear()
            self._tokens += self._log.read_new()
        header, before = self._log.header, self._then.header
        if header is not None and before is not None and header != before:
            raise ReplayRefused("the model changed: its weights or its tokenizer differ from the old run's")
        if result is None:
            return Run(self._tokens, header, is_whole=False)
        if result.error is not None:
            raise ReplayRefused(f"the new run failed: {result.error['message']}")
        if result.finish_reason == "cancelled":
            raise ReplayRefused("the new run was cancelled")
        return Run(complete(self._tokens, result), header, is_whole=True)

    def _show_progress(self, num_tokens: int) -> None:
        position = None if num_tokens else self._spool.position(self._request.id)
        if position is not None:
            self._terminal.live(f"waiting, position {position}")
        else:
            self._terminal.live(f"{num_tokens} of {len(self._then.tokens)} tokens")

    def _show(self, index: int, now: Run) -> None:
        terminal, then = self._terminal, self._then
        context = "".join(token.text for token in then.tokens[:index])[-NUM_CONTEXT_CHARACTERS:]
        heading = f"different: token {index} of {len(then.tokens)}, after {index} equal ones"
        terminal.line(terminal.colored(heading, "yellow"))
        terminal.line(f"  before  {json.dumps(context, ensure_ascii=False)}")
        terminal.line(f"  then    {describe_token(then, index)}")
        terminal.line(f"  now     {describe_token(now, index)}")
        terminal.line(NEAR_TIES)


def describe_token(run: Run, index: int) -> str:
    """`" Paris" (token 7042)`; if its text came out with a later token, the text up to there."""
    if index >= len(run.tokens):
        return "the end of the answer"
    text = ""
    for token in run.tokens[index : index + MAX_TOKENS_AFTER]:
        text += token.text
        if text:
            break
    return f"{json.dumps(text, ensure_ascii=False)} (token {run.tokens[index].token_id})"
