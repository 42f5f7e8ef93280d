"""Rank 0's side of the spool: claims become answers, tokens go to their logs, ends become results.

Knows the spool, the tokenizer and answers; nothing of MLX, frames or the ring. Results are written by one
background thread, so that an fsync never delays a step; a crash before that is mended from the token log."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Items
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from config.context_length import ContextLength
from config.disk_trouble import DiskTroubles
from distributed.answers import Answer
from distributed.request_lines import log_request, log_start, log_sweep
from distributed.sequence import Sequence
from distributed.text_stream import TextStream, TokenTexts
from prompts.tokenizer import MessagesRefused, RenderedChat
from spool import (
    Claim,
    Depth,
    Doorbell,
    LogHeader,
    Request,
    Result,
    SpoolOwner,
    SpoolUnavailable,
    TokenRecord,
    Usage,
)
from spool.messages import FinishReason

# After a claimed request could not begin: to claim and put back is work for a disk that is in trouble.
REST_SECONDS = 1.0
NO_CLAIMS, NOT_PUT_BACK = "requests cannot be claimed", "requests cannot be put back"
NOT_LISTED, NOT_SWEPT = "the queue cannot be listed", "old results cannot be removed"
NO_LOGS, NO_RESULTS = "token logs cannot be written", "results cannot be written"

logger = logging.getLogger(__name__)


class Tokenizer(Protocol):
    """What rank 0 needs of the model's tokenizer."""

    hash: str

    def least_tokens(self, text: str) -> int: ...

    def encode_raw(self, text: str) -> list[int]: ...

    def render(self, messages: Items[Mapping[str, Any]]) -> RenderedChat: ...

    def encode_rendered(self, text: str, *, literals: Items[int] = ()) -> list[int]: ...


@dataclass(frozen=True)
class ModelFacts:
    """The loaded model as requests meet it."""

    name: str
    weights_hash: str
    tokenizer: Tokenizer
    detokenizer: TokenTexts
    end_token_ids: frozenset[int]
    vocab_size: int
    context: ContextLength


class CannotRun(Exception):
    """This request can never run here; becomes its result."""

    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.code, self.status = code, status


class Intake:
    """The open answers by request id, and the way from and to the spool."""

    def __init__(
        self,
        owner: SpoolOwner,
        bell: Doorbell,
        model: ModelFacts,
        layers: tuple[tuple[int, int], ...],
        troubles: DiskTroubles | None = None,
    ) -> None:
        """
        Args:
            layers: (first layer, number of layers) by rank, for the results.
            troubles: takes what the disk refuses.
        """
        self._troubles = troubles or DiskTroubles()
        self._owner, self.bell, self._model, self._layers = owner, bell, model, layers
        self.answers: dict[str, Answer] = {}
        self._by_sequence: dict[Sequence, Answer] = {}
        self._unlogged: dict[str, list[TokenRecord]] = {}
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="results")
        self._unwritten: deque[tuple[Claim, Result]] = deque()
        self._unreturned: deque[Claim] = deque()
        self._depth = Depth(0, 0, 0)
        self._rest_ends = 0.0  # on the monotonic clock; nothing is claimed before
        self._solo: set[Answer] = set()
        self.num_ended: dict[str, int] = {"stop": 0, "length": 0, "cancelled": 0, "error": 0}
        self.results = {"num_bytes": 0, "removed_by_age": 0, "removed_by_size": 0}
        self.tokens = {"prompt_tokens": 0, "generation_tokens": 0, "cached_tokens": 0}

    def answer_of(self, sequence: Sequence) -> Answer:
        return self._by_sequence[sequence]

    def claim(self, max_claims: int) -> list[Answer]:
        """Claim waiting requests, oldest first; what cannot run or has ended already gets its result here."""
        if time.monotonic() < self._rest_ends:
            return []
        opened: list[Answer] = []
        claimed_unix = time.time()
        for claim in self._claim(max_claims):
            try:
                answer = self._open(claim, claimed_unix)
            except CannotRun as error:
                self._fail(claim, error)
                continue
            except SpoolUnavailable as error:
                self._troubles.note(NO_LOGS, str(error))
                self._put_back(claim)
                self._rest_ends = time.monotonic() + REST_SECONDS
                continue
            log_start(answer)
            if answer.finish_reason is not None:
                self.end(answer, answer.finish_reason)
            else:
                opened.append(answer)
        return opened

    def _claim(self, max_claims: int) -> list[Claim]:
        try:
            claims = self._owner.claim(max_claims) if max_claims > 0 else []
        except SpoolUnavailable as error:
            self._troubles.note(NO_CLAIMS, str(error))
            return []
        self._troubles.clear(NO_CLAIMS)
        return claims

    def cancelled(self) -> list[Answer]:
        """Return the open answers that were cancelled; waiting requests end here at once."""
        try:
            ids = self._owner.cancelled()
            for request_id in ids - self.answers.keys():
                for claim in self._owner.claim(1, only=[request_id]):
                    self._write(claim, _cancelled(claim.request))
                self._owner.clear_cancel(request_id)
        except SpoolUnavailable as error:  # the markers stay for the next look
            self._troubles.note(NO_CLAIMS, str(error))
            return []
        return [self.answers[request_id] for request_id in ids & self.answers.keys()]

    def mark_solo(self, sequence: Sequence) -> None:
        """Note in the spool that a suspect runs alone from its first step on: a crash counts against it."""
        answer = self._by_sequence[sequence]
        if answer in self._solo:
            return
        self._solo.add(answer)
        try:
            answer.claim = self._owner.mark_solo(answer.claim)
        except SpoolUnavailable as error:
            logger.error("request %s: not marked as running alone: %s", answer.request.label, error)
        else:
            logger.info("request %s runs alone: the ring went down while it ran", answer.request.label)

    def log_tokens(self, advanced: Iterable[tuple[Answer, Items[int]]]) -> None:
        """Append each answer's newest tokens to its log. A full disk delays the log, never the answer."""
        for answer, token_ids in advanced:
            unlogged = self._unlogged.pop(answer.request.id, ())
            records = [*unlogged, *answer.record(token_ids)]
            try:
                self._append(answer, records)
            except SpoolUnavailable as error:
                if not unlogged:  # once, and not at each token
                    logger.error("request %s: token log not written: %s", answer.request.label, error)
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
        result = answer.result(finish_reason, self._layers)
        answer.log.close()
        self._forget(answer)
        if finish_reason == "cancelled":
            self._owner.clear_cancel(answer.request.id)
        self._write(answer.claim, result)

    def fail(self, answer: Answer, error: CannotRun) -> None:
        """End an opened answer with an error."""
        answer.log.close()
        self._forget(answer)
        self._fail(answer.claim, error)

    def ring_doors(self) -> None:
        """Wake every front door: there is something new to read."""
        self._owner.ring_doors()

    def depth(self) -> Depth:
        """How much waits in the spool, or waited when it could last be listed."""
        try:
            self._depth = self._owner.spool.depth()
        except SpoolUnavailable as error:
            self._troubles.note(NOT_LISTED, str(error))
        else:
            self._troubles.clear(NOT_LISTED)
        return self._depth

    def retry(self) -> None:
        """Try again what the disk refused: results, and requests that go back to the queue."""
        for _ in range(len(self._unwritten)):
            self._writer.submit(self._complete, *self._unwritten.popleft())
        for _ in range(len(self._unreturned)):
            self._put_back(self._unreturned.popleft())

    def sweep(self, retention_seconds: float, max_bytes: int) -> None:
        """Remove results older than the retention or above the bytes, and leftovers, beside the steps."""
        self._writer.submit(self._sweep, retention_seconds, max_bytes)

    def close(self) -> None:
        """Wait for the results under way; put open answers back, to go on in the next life."""
        self._writer.shutdown(wait=True)
        for answer in self.answers.values():
            answer.log.close()
            self._put_back(answer.claim)
            logger.info("request %s is put back: it goes on at the next start", answer.request.label)

    def _put_back(self, claim: Claim) -> None:
        """Let a claimed request wait again; where the disk refuses, it is tried again, or a start does it."""
        try:
            self._owner.put_back(claim)
        except SpoolUnavailable as error:
            self._troubles.note(NOT_PUT_BACK, str(error))
            self._unreturned.append(claim)
        else:
            self._troubles.clear(NOT_PUT_BACK)

    def _forget(self, answer: Answer) -> None:
        self.answers.pop(answer.request.id, None)
        self._unlogged.pop(answer.request.id, None)
        self._by_sequence.pop(answer.sequence, None)
        self._solo.discard(answer)

    def _open(self, claim: Claim, claimed_unix: float) -> Answer:
        request, model = claim.request, self._model
        if request.model != model.name:
            raise CannotRun("model_changed", f"asked of model {request.model!r}, this is {model.name!r}", 409)
        if claim.is_poison:
            raise CannotRun(
                "poison", "the ring went down each time this request ran alone: it is not tried again", 500
            )
        sequence = self._make_sequence(claim)
        header = LogHeader(model.name, model.weights_hash, model.tokenizer.hash)
        log = self._owner.append_log(request.id, header=header)
        if log.header is not None and log.header != header:
            log.close()
            raise CannotRun("model_changed", "the answer began with other weights or another tokenizer", 409)
        before = self._before_answer(request, sequence.token_ids)
        stream = TextStream(model.detokenizer, request.params.stop, before)
        answer = Answer(claim, sequence, stream, log, len(self._layers), claimed_unix)
        self.answers[request.id] = self._by_sequence[sequence] = answer
        return answer

    def _make_sequence(self, claim: Claim) -> Sequence:
        """Return the sequence; an answer longer than the room that its prompt leaves is cut to that."""
        request, model = claim.request, self._model
        prompt = self._prompt_ids(request)
        room = model.context.max_tokens - len(prompt)
        if room < 1:
            raise CannotRun("context_length_exceeded", model.context.explain_too_long(len(prompt)))
        return Sequence(
            id=request.id,
            token_ids=prompt,
            num_prompt_tokens=len(prompt),
            max_tokens=min(request.params.max_tokens, room),
            end_token_ids=frozenset() if request.params.ignore_eos else model.end_token_ids,
            owner=request.owner,
            is_suspect=claim.is_suspect,
        )

    def _before_answer(self, request: Request, prompt: Items[int]) -> int | None:
        """Return the token whose text an answer continues; the answer in a chat is a text of its own."""
        if request.is_chat or request.literals is not None:
            return None
        return next((token for token in reversed(prompt) if self._model.detokenizer.is_known(token)), None)

    def _prompt_ids(self, request: Request) -> list[int]:
        tokenizer = self._model.tokenizer
        if request.token_ids is not None and request.tokenizer_hash == tokenizer.hash:
            ids = list(request.token_ids)
        elif request.text is not None:
            ids = self._encode(request, request.text)
        else:
            raise CannotRun(
                "model_changed", "the prompt was tokenized for another model and has no text", 409
            )
        if not ids or not all(0 <= token < self._model.vocab_size for token in ids):
            raise CannotRun(
                "invalid_prompt", "the prompt has no tokens, or ids beyond the model's vocabulary"
            )
        return ids

    def _encode(self, request: Request, text: str) -> list[int]:
        """Tokenize a raw prompt, a rendered chat, or a prompt file's text as a user's message."""
        tokenizer, context, literals = self._model.tokenizer, self._model.context, request.literals
        num_tokens = tokenizer.least_tokens(text)
        if num_tokens >= context.max_tokens:
            raise CannotRun("context_length_exceeded", context.explain_too_long(num_tokens, is_least=True))
        if not request.is_chat and literals is None:
            return tokenizer.encode_raw(text)
        try:
            if literals is None:
                chat = tokenizer.render([{"role": "user", "content": text}])
                text, literals = chat.text, chat.literals
            return tokenizer.encode_rendered(text, literals=literals)
        except MessagesRefused as error:
            raise CannotRun("invalid_prompt", str(error)) from error

    def _fail(self, claim: Claim, error: CannotRun) -> None:
        failed = Result.failed(
            claim.request.id,
            model=claim.request.model,
            code=error.code,
            message=str(error),
            status=error.status,
            finished_unix=time.time(),
            owner=claim.request.owner,
            seed=claim.request.params.seed,
        )
        self._write(claim, failed)

    def _write(self, claim: Claim, result: Result) -> None:
        self.num_ended[result.finish_reason] += 1
        self.tokens["prompt_tokens"] += result.usage.prompt_tokens
        self.tokens["generation_tokens"] += result.usage.completion_tokens
        self.tokens["cached_tokens"] += result.usage.cached_tokens
        log_request(claim, result)
        self._writer.submit(self._complete, claim, result)

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


def _cancelled(request: Request) -> Result:
    """The result of a request that was cancelled before it ran."""
    seed, now = request.params.seed, time.time()
    return Result(request.id, request.model, "", (), "cancelled", Usage(), {}, None, now, request.owner, seed)
