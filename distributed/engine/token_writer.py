"""Writes open answers: logs their tokens, wakes the front doors, turns ended answers into results.

Knows the spool and answers; nothing of MLX, frames or the ring. One background thread writes the results, so
that an fsync never delays a step. After a crash before that, the request continues from its token log."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from collections.abc import Sequence as Items
from concurrent.futures import Executor, ThreadPoolExecutor

from config.disk_trouble import DiskTroubles
from distributed.engine.answers import Answer
from distributed.engine.request_lines import log_request, log_sweep, logger
from distributed.engine.sequence import Advance, Sequence, Status
from spool import Claim, Request, Result, SpoolOwner, SpoolUnavailable, TokenRecord, Usage
from spool.messages import FinishReason

NOT_SWEPT = "old results cannot be removed"
MAX_OWNERS, OTHERS = 1000, "(others)"  # the first ones are counted each for itself
NO_LOGS, NO_RESULTS = "token logs cannot be written", "results cannot be written"


class CannotRun(Exception):
    """This request cannot run, or cannot continue; `code`, message and `status` become its result."""

    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.code, self.status = code, status


_NOT_FINITE = CannotRun(
    "non_finite",
    "the model's numbers overflowed for this prompt: its logits are not finite",
    500,
)


class TokenWriter:
    """The open answers by request id, with their tokens and results that are not written yet."""

    def __init__(
        self,
        owner: SpoolOwner,
        layers: tuple[tuple[int, int], ...],
        troubles: DiskTroubles,
        executor: Executor | None = None,
    ) -> None:
        """
        Args:
            layers: (first layer, number of layers) by rank, for the results.
            troubles: collects what the disk refuses.
            executor: writes results, one at a time; a thread of its own by default.
        """
        self._owner, self._layers, self._troubles = owner, layers, troubles
        self._executor = executor or ThreadPoolExecutor(max_workers=1, thread_name_prefix="results")
        self.answers: dict[str, Answer] = {}
        self._unpublished: list[Advance] = []
        self._unlogged: dict[str, list[TokenRecord]] = {}
        self._unwritten: deque[tuple[Claim, Result]] = deque()
        self.num_ended: dict[str, int] = {"stop": 0, "length": 0, "cancelled": 0, "error": 0}
        self.results = {"num_bytes": 0, "removed_by_age": 0, "removed_by_size": 0}
        self.tokens = {"prompt_tokens": 0, "generation_tokens": 0, "cached_tokens": 0}
        self.owners: dict[str, dict[str, int]] = {}

    @property
    def num_ranks(self) -> int:
        return len(self._layers)

    def answer_of(self, sequence: Sequence) -> Answer:
        return self.answers[sequence.id]

    def take(self, advanced: list[Advance]) -> None:
        """Take a step's tokens for the next `publish`; all earlier ones are published."""
        assert not self._unpublished
        self._unpublished = advanced

    def publish(self) -> list[Sequence]:
        """Log the new tokens, wake the front doors, end the answers that are complete.

        Returns:
            Sequences that a stop string ended, which only the text shows; the caller finishes them.
        """
        advanced, self._unpublished = self._unpublished, []
        if not advanced:
            return []
        answers = [self.answer_of(advance.sequence) for advance in advanced]
        for answer, advance in zip(answers, advanced, strict=True):
            if advance.token_ids:
                self.log(answer, advance.token_ids)
        self._owner.ring_doors()
        stopped = []
        for answer, advance in zip(answers, advanced, strict=True):
            if (reason := answer.finish_reason) is not None:
                if answer.sequence.status is not Status.FINISHED:
                    stopped.append(answer.sequence)
                self.end(answer, reason)
            elif not advance.is_finite:
                self.fail(answer, _why_no_token(answer))
        return stopped

    def log(self, answer: Answer, token_ids: Items[int]) -> None:
        """Append an answer's newest tokens to its log. A full disk delays the log, never the answer."""
        unlogged = self._unlogged.pop(answer.request.id, ())
        records = [*unlogged, *answer.record(token_ids)]
        try:
            self._append(answer, records)
        except SpoolUnavailable as error:
            if not unlogged:  # log this once, not at each token
                logger.error("request %s: its token log cannot be written: %s", answer.request.label, error)
            self._unlogged[answer.request.id] = records
            self._troubles.note(NO_LOGS, str(error))
        else:
            self._troubles.clear(NO_LOGS)
            # Only what a crash cannot take back proves that it does not bring the ring down.
            answer.sequence.is_suspect = False

    def _append(self, answer: Answer, records: list[TokenRecord]) -> None:
        """Append to the log; on a full disk, with what is set aside for logs. Raises SpoolUnavailable."""
        try:
            answer.log.append(records)
        except SpoolUnavailable:
            if not self._owner.make_log_room():
                raise
            answer.log.append(records)

    def end(self, answer: Answer, finish_reason: FinishReason) -> None:
        """Write the result and forget the answer."""
        self._forget(answer)
        if finish_reason == "cancelled":
            self._owner.clear_cancel(answer.request.id)
        self._write(answer.claim, answer.result(finish_reason, self._layers))

    def fail(self, answer: Answer, error: CannotRun) -> None:
        """End an opened answer with an error."""
        self._forget(answer)
        self.refuse(answer.claim, error)

    def refuse(self, claim: Claim, error: CannotRun) -> None:
        """Write the error of a request that cannot run."""
        request = claim.request
        failed = Result.failed(
            request.id,
            model=request.model,
            code=error.code,
            message=str(error),
            status=error.status,
            finished_unix=time.time(),
            owner=request.owner,
            seed=request.params.seed,
        )
        self._write(claim, failed)

    def cancel(self, claim: Claim) -> None:
        """Write the result of a request that was cancelled before it ran."""
        self._write(claim, _cancelled(claim.request))

    def retry(self) -> None:
        """Write the results that the disk refused before."""
        for _ in range(len(self._unwritten)):
            self._executor.submit(self._complete, *self._unwritten.popleft())

    def sweep(self, retention_seconds: float, max_bytes: int) -> None:
        """Remove old results, results beyond `max_bytes` and leftovers, in the background thread."""
        self._executor.submit(self._sweep, retention_seconds, max_bytes)

    def close(self) -> Iterable[Answer]:
        """Wait for the results under way, close all logs, return the answers that are still open."""
        self._executor.shutdown(wait=True)
        for answer in self.answers.values():
            answer.log.close()
        return self.answers.values()

    def _forget(self, answer: Answer) -> None:
        answer.log.close()
        del self.answers[answer.request.id]
        self._unlogged.pop(answer.request.id, None)

    def _write(self, claim: Claim, result: Result) -> None:
        self.num_ended[result.finish_reason] += 1
        self.tokens["prompt_tokens"] += result.usage.prompt_tokens
        self.tokens["generation_tokens"] += result.usage.completion_tokens
        self.tokens["cached_tokens"] += result.usage.cached_tokens
        self._count_owner(result)
        log_request(claim, result)
        self._executor.submit(self._complete, claim, result)

    def _count_owner(self, result: Result) -> None:
        owner = result.owner
        if not owner:
            return
        if owner not in self.owners and len(self.owners) >= MAX_OWNERS:
            owner = OTHERS
        nothing = {"requests": 0, "prompt_tokens": 0, "generation_tokens": 0}
        counts = self.owners.setdefault(owner, nothing)
        counts["requests"] += 1
        counts["prompt_tokens"] += result.usage.prompt_tokens
        counts["generation_tokens"] += result.usage.completion_tokens

    def _complete(self, claim: Claim, result: Result) -> None:
        try:
            self._owner.complete(claim, result)
        except SpoolUnavailable as error:
            self._troubles.note(NO_RESULTS, str(error))
            self._unwritten.append((claim, result))
        else:
            self._troubles.clear(NO_RESULTS)
            self._owner.ring_doors()

    def _sweep(self, retention_seconds: float, max_bytes: int) -> None:
        try:
            swept = self._owner.sweep(time.time(), retention_seconds, max_bytes)
        except SpoolUnavailable as error:
            self._troubles.note(NOT_SWEPT, str(error))
            return
        self._troubles.clear(NOT_SWEPT)
        by_age, by_size = self.results["removed_by_age"], self.results["removed_by_size"]
        self.results = {
            "num_bytes": swept.num_kept_bytes,
            "removed_by_age": by_age + swept.num_results_by_age,
            "removed_by_size": by_size + swept.num_results_by_size,
        }
        log_sweep(swept, max_bytes)


def _why_no_token(answer: Answer) -> CannotRun:
    """Return why no token could be drawn."""
    if answer.constraint is None or answer.constraint.error is None:
        return _NOT_FINITE
    return CannotRun("grammar_failed", answer.constraint.error)


def _cancelled(request: Request) -> Result:
    seed, now = request.params.seed, time.time()
    return Result(request.id, request.model, "", (), "cancelled", Usage(), {}, None, now, request.owner, seed)
