"""Claims requests from the spool, checks them, and opens an answer for each or puts it back.

Knows the spool, the tokenizer and the writer, which writes the errors of refused requests; nothing of MLX,
frames or the ring.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Any, Protocol

from config.context_length import ContextLength
from config.disk_trouble import DiskTroubles
from distributed.engine.answers import Answer
from distributed.engine.constraints import Constraint, GrammarRefused, Grammars
from distributed.engine.request_lines import log_start, logger
from distributed.engine.sequence import Sequence
from distributed.engine.text_stream import TextStream, TokenTexts
from distributed.engine.token_writer import NO_LOGS, CannotRun, TokenWriter
from prompts.tokenizer import MessagesRefused, RenderedChat
from spool import Claim, Depth, Doorbell, LogHeader, Request, SamplingParams, SpoolOwner, SpoolUnavailable

# No claims for this long after the disk refused a token log: each claim and put-back is more work for it.
REST_SECONDS = 1.0
NO_CLAIMS, NOT_PUT_BACK = "requests cannot be claimed", "requests cannot be put back"
NOT_LISTED = "the queue cannot be listed"


class Tokenizer(Protocol):
    """What rank 0 needs of the model's tokenizer."""

    hash: str

    @property
    def special_detokenizer(self) -> TokenTexts: ...

    def least_tokens(self, text: str) -> int: ...

    def encode_raw(self, text: str) -> list[int]: ...

    def render(self, messages: Items[Mapping[str, Any]]) -> RenderedChat: ...

    def encode_rendered(self, text: str, *, literals: Items[int] = ()) -> list[int]: ...


@dataclass(frozen=True)
class ModelFacts:
    """What requests need to know of the loaded model."""

    name: str
    weights_hash: str
    tokenizer: Tokenizer
    detokenizer: TokenTexts
    end_token_ids: frozenset[int]
    vocab_size: int
    context: ContextLength
    grammars: Grammars


class RequestSource:
    """Claims requests for the writer's open answers."""

    def __init__(
        self,
        owner: SpoolOwner,
        bell: Doorbell,
        model: ModelFacts,
        writer: TokenWriter,
        troubles: DiskTroubles,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            writer: holds the open answers.
            troubles: collects what the disk refuses.
        """
        self._owner, self.bell, self._model, self._writer = owner, bell, model, writer
        self._troubles, self._clock = troubles, clock
        self._unreturned: deque[Claim] = deque()
        self._depth = Depth(0, 0, 0)
        self._rest_ends = 0.0  # on the clock; no claims before
        self._held: dict[str, Answer] = {}  # open answers without a row yet

    def claim(self, max_claims: int, max_yielding: int | None = None) -> list[Answer]:
        """Claim waiting requests, oldest first; end those that cannot run or are complete already.

        One with a grammar is returned once that is compiled, by a later call; the bell rings then. A compile
        may end the process, as a step may. So while a suspect is open, only its own begins, when it is marked
        as running alone.

        Args:
            max_yielding: of yielding requests, see `SpoolOwner.claim`; None: as many as of others.
        """
        num_held = len(self._held)
        num_new = max_claims - num_held
        if num_new > 0 and self._clock() >= self._rest_ends:
            now = time.time()
            for claim in self._claim(num_new, None if max_yielding is None else max_yielding - num_held):
                self._try_open(claim, now)
        if not any(answer.sequence.is_suspect for answer in self._writer.answers.values()):
            for answer in self._held.values():
                self._begin_compile(answer)
        ready = [answer for answer in self._held.values() if self._is_ready(answer)]
        for answer in ready:
            del self._held[answer.request.id]
        return [answer for answer in ready if not self._is_refused(answer)]

    def _begin_compile(self, answer: Answer) -> None:
        params = answer.request.params
        if params.grammar is None or answer.constraint is not None:
            return
        compiled = self._model.grammars.compile(params.grammar)
        answer.constraint = Constraint(compiled, ignores_end=params.ignore_eos)
        if not compiled.done():
            compiled.add_done_callback(lambda _: self.bell.ring())

    def _is_ready(self, answer: Answer) -> bool:
        """Whether a held answer may have a row: a suspect when no compile runs beside it."""
        if answer.sequence.is_suspect:
            return not self._model.grammars.is_compiling
        if answer.constraint is None:
            return answer.request.params.grammar is None
        return answer.constraint.compiled.done()

    def _is_refused(self, answer: Answer) -> bool:
        """Whether an answer's grammar cannot be compiled; end it then."""
        error = None if answer.constraint is None else answer.constraint.compiled.exception()
        if error is None:
            return False
        if not isinstance(error, GrammarRefused):  # it must not end the ring
            logger.error("request %s: its grammar broke the compile", answer.request.label, exc_info=error)
        self._writer.fail(answer, CannotRun("grammar_refused", str(error)))
        return True

    def _claim(self, max_claims: int, max_yielding: int | None) -> list[Claim]:
        try:
            claims = self._owner.claim(max_claims, max_yielding=max_yielding)
        except SpoolUnavailable as error:
            self._troubles.note(NO_CLAIMS, str(error))
            return []
        self._troubles.clear(NO_CLAIMS)
        return claims

    def _try_open(self, claim: Claim, claimed_unix: float) -> None:
        """Hold the open answer, unless the request ends or is put back."""
        try:
            answer = self._open(claim, claimed_unix)
        except CannotRun as error:
            self._writer.refuse(claim, error)
            return
        except SpoolUnavailable as error:
            self._troubles.note(NO_LOGS, str(error))
            self._put_back(claim)
            self._rest_ends = self._clock() + REST_SECONDS
            return
        log_start(answer)
        self._writer.answers[claim.request.id] = answer
        if answer.finish_reason is not None:
            self._writer.end(answer, answer.finish_reason)
        else:
            self._held[answer.request.id] = answer

    def cancelled(self) -> list[Answer]:
        """Return the cancelled answers that claim has returned; end cancelled requests that still wait."""
        answers = self._writer.answers
        try:
            ids = self._owner.cancelled()
            for request_id in ids - answers.keys():
                for claim in self._owner.claim(1, only=[request_id]):
                    self._writer.cancel(claim)
                self._owner.clear_cancel(request_id)
        except SpoolUnavailable as error:  # the cancel marks stay for the next call
            self._troubles.note(NO_CLAIMS, str(error))
            return []
        for request_id in ids & self._held.keys():
            self._writer.end(self._held.pop(request_id), "cancelled")
        return [answers[request_id] for request_id in ids & answers.keys()]

    def mark_solo(self, answer: Answer) -> None:
        """Mark a suspect in the spool as running alone, so that a crash counts against it; then compile."""
        if answer.is_solo:
            return
        answer.is_solo = True
        try:
            answer.claim = self._owner.mark_solo(answer.claim)
        except SpoolUnavailable as error:
            logger.error("request %s cannot be marked as running alone: %s", answer.request.label, error)
        else:
            logger.info("request %s runs alone: an earlier ring ended while it ran", answer.request.label)
        self._begin_compile(answer)

    @property
    def num_compiling(self) -> int:
        """Open answers that claim has not returned, because a grammar is not compiled."""
        return len(self._held)

    def depth(self) -> Depth:
        """Return the queue's depth, as of the last time that it could be listed."""
        try:
            self._depth = self._owner.spool.depth()
        except SpoolUnavailable as error:
            self._troubles.note(NOT_LISTED, str(error))
        else:
            self._troubles.clear(NOT_LISTED)
        return self._depth

    def retry(self) -> None:
        """Put back the claims that the disk refused before."""
        for _ in range(len(self._unreturned)):
            self._put_back(self._unreturned.popleft())

    def close(self) -> None:
        """Write the results under way, then put the open answers back for the next start."""
        self._model.grammars.close()
        for answer in self._writer.close():
            self._put_back(answer.claim)
            logger.info("request %s is put back: it continues at the next start", answer.request.label)

    def _put_back(self, claim: Claim) -> None:
        """Put a claimed request back; if the disk refuses, `retry` or the next start does it."""
        try:
            self._owner.put_back(claim)
        except SpoolUnavailable as error:
            self._troubles.note(NOT_PUT_BACK, str(error))
            self._unreturned.append(claim)
        else:
            self._troubles.clear(NOT_PUT_BACK)

    def _open(self, claim: Claim, claimed_unix: float) -> Answer:
        request, model = claim.request, self._model
        if request.model != model.name:
            raise CannotRun(
                "model_changed",
                f"the request is for model {request.model!r}; this service runs {model.name!r}",
                409,
            )
        if claim.is_poison:
            raise CannotRun(
                "poison", "the ring crashed each time this request ran alone: it is not retried", 500
            )
        sequence = self._make_sequence(claim)
        header = LogHeader(model.name, model.weights_hash, model.tokenizer.hash)
        log = self._owner.append_log(request.id, header=header)
        if log.header is not None and log.header != header:
            log.close()
            raise CannotRun(
                "model_changed", "the answer was begun with other weights or another tokenizer", 409
            )
        before = self._before_answer(request, sequence.token_ids)
        shows_special = request.params.shows_special
        detokenizer = model.tokenizer.special_detokenizer if shows_special else model.detokenizer
        stream = TextStream(detokenizer, request.params.stop, before)
        return Answer(claim, sequence, stream, log, self._writer.num_ranks, claimed_unix)

    def _make_sequence(self, claim: Claim) -> Sequence:
        """Return the sequence; cut max_tokens to the context that the prompt leaves."""
        request, model = claim.request, self._model
        if not all(0 <= token < model.vocab_size for token in request.params.logit_bias):
            raise CannotRun("invalid_logit_bias", "logit_bias has token ids outside the model's vocabulary")
        prompt = self._prompt_ids(request)
        room = model.context.max_tokens - len(prompt)
        if room < 1:
            raise CannotRun("context_length_exceeded", model.context.explain_too_long(len(prompt)))
        return Sequence(
            id=request.id,
            token_ids=prompt,
            num_prompt_tokens=len(prompt),
            max_tokens=min(request.params.max_tokens, room),
            end_token_ids=model.end_token_ids if _can_end(request.params) else frozenset(),
            owner=request.owner,
            is_suspect=claim.is_suspect,
            yields=request.yields,
            reads_prompt=request.params.prompt_logprobs is not None,
        )

    def _before_answer(self, request: Request, prompt: Items[int]) -> int | None:
        """Return the last prompt token with text, which the answer continues; None in a chat."""
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
            raise CannotRun("model_changed", "the prompt has token ids of another tokenizer and no text", 409)
        if not ids or not all(0 <= token < self._model.vocab_size for token in ids):
            raise CannotRun(
                "invalid_prompt", "the prompt has no tokens, or token ids outside the model's vocabulary"
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


def _can_end(params: SamplingParams) -> bool:
    """Whether an end token ends the answer. A grammar allows one only where nothing else may follow."""
    return not params.ignore_eos or params.grammar is not None
