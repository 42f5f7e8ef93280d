"""Output constraints: which tokens the grammar of a request allows next. Runs on rank 0 only.

llguidance compiles grammars in one thread and computes masks in another, and leaves the interpreter's lock
meanwhile. A mask is a pure function of the grammar and the answer's tokens so far, so an answer that goes on
after a crash needs no state of its own. Knows nothing of requests, MLX or the ring. llguidance is imported at
the first grammar, in the thread, because a start need not wait for it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence as Items
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from llguidance import LLExecutor, LLMatcher, LLParserLimits, LLTokenizer

Mask = NDArray[np.int32]  # (words,): bit i of word w is token 32 w + i, set where it is allowed

MAX_COMPILED = 64  # grammars kept: an agent sends the same tools with each turn
MAX_REASON_LENGTH = 1000  # characters of llguidance's own words


class GrammarRefused(Exception):
    """A grammar cannot be compiled, or not for this model; the message is for the client."""


@dataclass(frozen=True)
class Grammar:
    """A compiled grammar, at its beginning; never changed after that."""

    matcher: LLMatcher
    num_tokens: int  # bits of a mask, at least the model's vocabulary
    end_token_ids: frozenset[int]

    @property
    def num_words(self) -> int:
        return -(-self.num_tokens // 32)

    @cached_property
    def ends(self) -> Mask:
        """The mask of the end tokens."""
        bits = np.zeros(self.num_words * 32, np.uint8)
        bits[list(self.end_token_ids)] = 1
        return np.packbits(bits, bitorder="little").view(np.int32)


class Constraint:
    """The place of one answer in its grammar.

    `order` is called by the loop; all else runs in the thread that makes masks. `error` says why no further
    token can be allowed; its masks allow nothing then.
    """

    def __init__(self, grammar: Grammar, *, ignores_end: bool = False) -> None:
        """Args: ignores_end: end tokens are allowed only where the grammar allows nothing else."""
        self.grammar = grammar
        self._ignores_end = ignores_end
        self._num_ordered = 0  # tokens of the answer that orders so far have brought
        self.error: str | None = None

    def order(self, token_ids: list[int], num_prompt_tokens: int, drafts: Items[int]) -> MaskOrder:
        """Order the masks after all tokens of prompt and answer, and after each draft."""
        new = token_ids[num_prompt_tokens + self._num_ordered :]
        self._num_ordered += len(new)
        return MaskOrder(self, new, list(drafts))

    @cached_property
    def matcher(self) -> LLMatcher:
        return self.grammar.matcher.deep_copy()

    def accept(self, token_ids: list[int]) -> None:
        """Advance by tokens of the answer."""
        if self.error is None and not self.matcher.consume_tokens(token_ids):
            self._note_error("the answer so far does not match the grammar")

    def finish(self, masks: NDArray[np.int32]) -> None:
        """Check and complete masks (N, words) that llguidance has computed, in place."""
        if self._ignores_end:
            others = masks & ~self.grammar.ends
            has_others = others.any(axis=1)
            masks[has_others] = others[has_others]
        if self.matcher.is_error():
            self._note_error("the grammar cannot go on")
        elif not masks[0].any():
            self.error = "the grammar allows none of the model's tokens"

    def _note_error(self, what: str) -> None:
        self.error = f"{what}: {self.matcher.get_error()[:MAX_REASON_LENGTH] or self.matcher.stop_reason()}"


@dataclass(frozen=True)
class MaskOrder:
    """A row's masks to make: after new tokens of the answer, and after each of its drafts."""

    constraint: Constraint
    new_token_ids: list[int]
    drafts: list[int]


Masks = dict[Constraint, NDArray[np.int32]]


class MaskMaker:
    """Makes masks in a thread of its own, order by order, while stages work."""

    def __init__(self, executor: Executor | None = None) -> None:
        """Args: executor: runs one job at a time; a thread by default."""
        self._executor = executor or ThreadPoolExecutor(max_workers=1, thread_name_prefix="masks")

    def begin(self, orders: list[MaskOrder]) -> Future[Masks]:
        """Begin to make masks (1 + drafts, words) for each constraint.

        All bits are set after a draft that is not allowed, and none where the constraint has an error.
        """
        return self._executor.submit(self._make, orders)

    @cached_property
    def _parallel(self) -> LLExecutor:
        from llguidance import LLExecutor

        return LLExecutor()

    def _make(self, orders: list[MaskOrder]) -> Masks:
        num_words = orders[0].constraint.grammar.num_words
        num_masks = sum(1 + len(order.drafts) for order in orders)
        masks: NDArray[np.int32] = np.full((num_masks, num_words), -1, np.int32)
        made: Masks = {}
        plain, drafted, first = [], [], 0
        for order in orders:
            order.constraint.accept(order.new_token_ids)
            made[order.constraint] = masks[first : first + 1 + len(order.drafts)]
            if order.constraint.error is None and order.drafts:
                drafted.append((order.constraint.matcher, first, order.drafts))
            elif order.constraint.error is None:
                plain.append((order.constraint.matcher, first))
            first += 1 + len(order.drafts)
        place = masks.ctypes.data, num_words * masks.itemsize, num_masks
        if plain:
            self._parallel.unsafe_compute_mask_ptr(plain, *place)
        if drafted:
            self._parallel.unsafe_compute_mask_ptr_with_draft_token(drafted, *place)
        for constraint, own in made.items():
            if constraint.error is None:
                constraint.finish(own)
            if constraint.error is not None:
                own[:] = 0
        return made


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

    def compile(self, text: str) -> Future[Grammar]:
        """Return the compiled grammar, which is done already or will be; it may raise GrammarRefused."""
        compiled = self._compiled.pop(text, None) or self._executor.submit(self._compile, text)
        self._compiled[text] = compiled
        if len(self._compiled) > MAX_COMPILED:
            self._compiled.popitem(last=False)
        return compiled

    def _compile(self, text: str) -> Grammar:
        from llguidance import LLMatcher

        matcher = LLMatcher(self._tokenizer, text, log_level=0, limits=_limits())
        if matcher.is_error():
            raise GrammarRefused(f"the grammar cannot be compiled: {matcher.get_error()[:MAX_REASON_LENGTH]}")
        return Grammar(matcher, self._tokenizer.vocab_size, self._end_token_ids)

    @cached_property
    def _tokenizer(self) -> LLTokenizer:
        from llguidance import LLTokenizer

        if not self._end_token_ids:
            raise GrammarRefused("this model names no end token, so no grammar can end its answers")
        try:
            return LLTokenizer(str(self._tokenizer_file), self._vocab_size, sorted(self._end_token_ids))
        except ValueError as error:
            raise GrammarRefused(f"this model's tokenizer cannot be used with grammars: {error}") from error


def _limits() -> LLParserLimits:
    """Bound the time of a compile and of a mask, and the memory; errors repeat nothing of the answer."""
    from llguidance import LLParserLimits

    options: dict[str, Any] = {"max_lexer_states": 50_000, "verbose_errors": False}
    return LLParserLimits(**options)
