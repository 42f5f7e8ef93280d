"""Output constraints: which tokens the grammar of a request allows next. Runs on rank 0 only.

llguidance compiles grammars in one thread and computes masks in another, and leaves the interpreter's lock
meanwhile. A mask is a pure function of the grammar and the answer's tokens so far, so an answer that goes on
after a crash needs no state of its own. Knows nothing of requests, MLX or the ring. llguidance is imported at
the first grammar, in the thread, because a start need not wait for it."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence as Items
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from config.deep_stack import panics_as_errors, run_deep
from distributed.engine.row_sampling import Mask

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

logger = logging.getLogger(__name__)

Masks = NDArray[np.int32]  # (N, words)

MAX_COMPILED = 32  # grammars kept: an agent sends the same tools with each turn
MAX_REASON_LENGTH = 1000  # characters of llguidance's own words


class GrammarRefused(Exception):
    """A grammar cannot be compiled, or not for this model; the message is for the client."""


class Grammar:
    """A grammar that one model can answer by.

    Matchers copied from one another share a lexer, which keeps each state that it meets, up to a limit: then
    all of them fail (llguidance 1.9.1).
    """

    def __init__(self, text: str, tokenizer: LLTokenizer, end_token_ids: frozenset[int]) -> None:
        """Compile it. Raises GrammarRefused."""
        self._text, self._tokenizer = text, tokenizer
        self.num_words = -(-tokenizer.vocab_size // 32)
        bits = np.zeros(self.num_words * 32, np.uint8)
        bits[list(end_token_ids)] = 1
        self.ends: Mask = np.packbits(bits, bitorder="little").view(np.int32)
        self._shared: LLMatcher | None = self._compile()
        if self._shared.is_error():
            raise GrammarRefused(f"the grammar cannot be compiled: {describe_error(self._shared)}")

    def begin(self) -> LLMatcher:
        """Return a matcher at the beginning."""
        if self._shared is None:
            self._shared = self._compile()
        return self._shared.deep_copy()

    def begin_alone(self) -> LLMatcher:
        """Return a matcher that shares nothing, in place of a failed one; new ones share another lexer."""
        self._shared = None
        return self._compile()

    def _compile(self) -> LLMatcher:
        from llguidance import LLMatcher

        make = partial(LLMatcher, self._tokenizer, self._text, log_level=0, limits=make_limits())
        return run_deep(make)


class Constraint:
    """The place of one answer in its grammar.

    The loop calls `order`; one thread waits for the compile and makes the masks, order by order. `error` says
    why the last ones allow nothing.
    """

    def __init__(self, compiled: Future[Grammar], *, ignores_end: bool = False) -> None:
        """Args: ignores_end: end tokens are allowed only where the grammar allows nothing else."""
        self.compiled, self._ignores_end = compiled, ignores_end
        self._num_ordered = 0  # tokens of the answer that orders so far have brought
        self._token_ids: list[int] = []  # of the answer
        self._num_taken = 0  # that the matcher has taken
        self._matcher: LLMatcher | None = None
        self.error: str | None = None

    def order(self, token_ids: list[int], num_prompt_tokens: int, drafts: Items[int]) -> MaskOrder:
        """Return the order of the masks after all tokens of prompt and answer, and after each draft."""
        new = token_ids[num_prompt_tokens + self._num_ordered :]
        self._num_ordered += len(new)
        return MaskOrder(self, new, drafts)

    def make(self, new_token_ids: Items[int], drafts: Items[int]) -> Masks:
        """Take further tokens of the answer; return the masks after these and after each draft.

        After a draft that is not allowed, masks allow everything: those draws do not count.
        """
        self._token_ids += new_token_ids
        try:
            with panics_as_errors():
                return self._make(self.compiled.result(), drafts)
        except Exception as error:  # the thread makes the masks of other answers, too
            if not isinstance(error, GrammarRefused):
                logger.exception("the masks of an answer cannot be made")
            self._matcher = None
            self.error = f"the answer cannot go on by its grammar: {error}"[:MAX_REASON_LENGTH]
            return np.zeros((1 + len(drafts), 1), np.int32)

    def _make(self, grammar: Grammar, drafts: Items[int]) -> Masks:
        if self._matcher is None:
            self._matcher, self._num_taken = grammar.begin(), 0
        masks = self._look_ahead(grammar, self._matcher, drafts)
        if self._matcher.is_error():  # another answer may have filled the lexer
            self._matcher, self._num_taken = grammar.begin_alone(), 0
            masks = self._look_ahead(grammar, self._matcher, drafts)
        self.error = self._find_error(self._matcher, masks[0])
        if self.error is not None:
            masks[:] = 0
        elif self._ignores_end:
            others = masks & ~grammar.ends
            has_others = others.any(axis=1)
            masks[has_others] = others[has_others]
        return masks

    def _look_ahead(self, grammar: Grammar, matcher: LLMatcher, drafts: Items[int]) -> Masks:
        matcher.consume_tokens(self._token_ids[self._num_taken :])
        self._num_taken = len(self._token_ids)
        masks: Masks = np.full((1 + len(drafts), grammar.num_words), -1, np.int32)
        num_ahead = 0
        for mask, draft in zip(masks, (*drafts, None), strict=True):
            matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
            if draft is None or matcher.is_stopped() or not matcher.try_consume_tokens([draft]):
                break
            num_ahead += 1
        matcher.rollback(num_ahead)
        return masks

    def _find_error(self, matcher: LLMatcher, mask: Mask) -> str | None:
        if matcher.is_error():
            return f"the answer cannot go on by its grammar: {describe_error(matcher)}"
        return None if mask.any() else "the grammar allows none of the model's tokens here"


@dataclass(frozen=True)
class MaskOrder:
    """A row's masks to make: after new tokens of the answer, and after each of its drafts."""

    constraint: Constraint
    new_token_ids: Items[int]
    drafts: Items[int]


def make_masks(orders: Items[MaskOrder]) -> dict[Constraint, Masks]:
    """Make the masks of a microbatch's rows, in the thread that alone does so."""
    return {order.constraint: order.constraint.make(order.new_token_ids, order.drafts) for order in orders}


class Grammars:
    """Compiles grammars for one model, each once, in a thread; keeps the last ones."""

    def __init__(
        self,
        tokenizer_file: Path,
        vocab_size: int,
        end_token_ids: frozenset[int],
        executor: Executor | None = None,
    ) -> None:
        """
        Args:
            tokenizer_file: the model's tokenizer.json, read at the first grammar.
            vocab_size: the larger of the model's and the tokenizer's.
            executor: runs one job at a time; a thread by default.
        """
        self._tokenizer_file, self._vocab_size = tokenizer_file, vocab_size
        self._end_token_ids = end_token_ids
        self._executor = executor or ThreadPoolExecutor(max_workers=1, thread_name_prefix="grammars")
        self._compiled: OrderedDict[str, Future[Grammar]] = OrderedDict()
        self._newest: Future[Grammar] | None = None

    @property
    def is_compiling(self) -> bool:
        return self._newest is not None and not self._newest.done()

    def compile(self, text: str) -> Future[Grammar]:
        """Return the compiled grammar, which is done already or will be; it may raise GrammarRefused."""
        compiled = self._compiled.pop(text, None)
        if compiled is None:
            compiled = self._newest = self._executor.submit(self._compile, text)
        self._compiled[text] = compiled
        if len(self._compiled) > MAX_COMPILED:
            self._compiled.popitem(last=False)
        return compiled

    def close(self) -> None:
        """Compile nothing more; what has begun ends by itself."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _compile(self, text: str) -> Grammar:
        return Grammar(text, self._tokenizer, self._end_token_ids)

    @cached_property
    def _tokenizer(self) -> LLTokenizer:
        from llguidance import LLTokenizer

        if not self._end_token_ids:
            raise GrammarRefused("this model names no end token, so no grammar can end its answers")
        try:
            return LLTokenizer(str(self._tokenizer_file), self._vocab_size, sorted(self._end_token_ids))
        except ValueError as error:
            raise GrammarRefused(f"this model's tokenizer cannot be used with grammars: {error}") from error


def describe_error(matcher: LLMatcher) -> str:
    """Return why a matcher failed, in llguidance's words; they repeat nothing of the answer."""
    reason = matcher.get_error().replace("<non-verbose/>", "").strip()
    return reason[:MAX_REASON_LENGTH]


def make_limits() -> LLParserLimits:
    """Bound the time of a compile and of a mask, and the memory of a lexer."""
    from llguidance import LLParserLimits

    return LLParserLimits(
        max_items_in_row=10_000, max_lexer_states=50_000, max_grammar_size=100_000, verbose_errors=False
    )
