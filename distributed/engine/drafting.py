"""Guessing what comes next from what was said before (prompt lookup), to verify several tokens in one lap.

A guess is the text that followed the same few tokens earlier in the prompt or answer. A wrong one costs
time and nothing else: draws are kept only while they equal the guesses, and each draw is keyed by its index.
How far to guess is decided by what steps of each size were measured to cost and how often this sequence's
guesses held, so that guessing is left where it does not gain. Pure Python: no MLX, no clock.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import Protocol

from distributed.engine.sequence import Sequence

MAX_DRAFTS = 15
NGRAM_TOKENS = (4, 3, 2)  # the longest match is looked for first
# With more rows than these a step is dear for each token, and looking back takes rank 0's time.
MAX_GUESSING_ROWS = 8
# Guesses must promise this much more than none.
MIN_GAIN = 1.1
# How a sequence's guesses are taken to have fared before any was made.
PRIOR_RIGHT, PRIOR_WRONG = 2.0, 1.0
# How quickly what a sequence's guesses did is forgotten, and what a step costs.
FORGETTING, COST_WEIGHT = 0.9, 0.2
# Now and then a sequence whose guesses fail may try again: its text may have come to a quotation.
RETRY_TOKENS = 32


class Drafter(Protocol):
    """Guesses tokens for decode rows."""

    def propose(self, sequences: Items[Sequence]) -> list[tuple[int, ...]]:
        """Return the guesses of each row of one decode group, in order; () for none."""
        ...

    def learn(self, sequence: Sequence, num_drafts: int, num_right: int) -> None:
        """Take in how many of a row's guesses held."""
        ...

    def note_cost(self, num_tokens: int, busy_us: float) -> None:
        """Take in what a decode step of rows x columns tokens cost all stages together."""
        ...

    def forget(self, sequence: Sequence) -> None:
        """Drop what is kept for a sequence that has ended."""
        ...


class NoDrafter:
    """Guesses nothing."""

    def propose(self, sequences: Items[Sequence]) -> list[tuple[int, ...]]:
        """See Drafter."""
        return [()] * len(sequences)

    def learn(self, sequence: Sequence, num_drafts: int, num_right: int) -> None:
        """See Drafter."""

    def note_cost(self, num_tokens: int, busy_us: float) -> None:
        """See Drafter."""

    def forget(self, sequence: Sequence) -> None:
        """See Drafter."""


@dataclass
class StepCosts:
    """What a step of so many tokens costs over all stages, as measured; sizes in powers of two."""

    _by_size: dict[int, float] = field(default_factory=dict)

    def note(self, num_tokens: int, busy_us: float) -> None:
        """Take in one step of rows x columns tokens."""
        size = _size_of(num_tokens)
        old = self._by_size.get(size)
        self._by_size[size] = busy_us if old is None else old + COST_WEIGHT * (busy_us - old)

    def estimate(self, num_tokens: int) -> float:
        """Return the cost of a step in microseconds; sizes not seen yet count as the next smaller one seen.

        So a size is tried once before it is judged.
        """
        size = _size_of(num_tokens)
        smaller = [cost for seen, cost in self._by_size.items() if seen <= size]
        return max(smaller) if smaller else 1.0


def _size_of(num_tokens: int) -> int:
    return (num_tokens - 1).bit_length()


@dataclass
class _History:
    """One sequence's n-grams and how its guesses fared."""

    places: dict[tuple[int, ...], int] = field(default_factory=dict)  # n-gram -> index of what followed
    num_indexed: int = 0
    right: float = PRIOR_RIGHT
    wrong: float = PRIOR_WRONG
    num_tokens_at_failure: int = 0

    @property
    def hit_rate(self) -> float:
        return self.right / (self.right + self.wrong)


class PromptLookup:
    """Guesses by looking back; keeps one account of costs over all sequences."""

    def __init__(self) -> None:
        self._costs = StepCosts()
        self._histories: dict[Sequence, _History] = {}

    def propose(self, sequences: Items[Sequence]) -> list[tuple[int, ...]]:
        """See Drafter. One length for the whole group, as its rows are stepped in the same columns."""
        if len(sequences) > MAX_GUESSING_ROWS:
            return [()] * len(sequences)
        found = [self._look_up(sequence) for sequence in sequences]
        longest = max((len(guess) for guess in found), default=0)
        if not longest:
            return found
        best, best_rate = 0, MIN_GAIN * self._rate(sequences, found, 0)
        for length in sorted(
            {length for length in (1, 2, 3, 5, 7, 11, MAX_DRAFTS, longest) if length <= longest}
        ):
            rate = self._rate(sequences, found, length)
            if rate > best_rate:
                best, best_rate = length, rate
        return [guess[:best] for guess in found]

    def learn(self, sequence: Sequence, num_drafts: int, num_right: int) -> None:
        """See Drafter."""
        history = self._histories[sequence]
        history.right = FORGETTING * history.right + num_right
        history.wrong = FORGETTING * history.wrong + (num_right < num_drafts)
        if num_right < num_drafts:
            history.num_tokens_at_failure = len(sequence.token_ids)

    def note_cost(self, num_tokens: int, busy_us: float) -> None:
        """See Drafter."""
        self._costs.note(num_tokens, busy_us)

    def forget(self, sequence: Sequence) -> None:
        """See Drafter."""
        self._histories.pop(sequence, None)

    def _rate(self, sequences: Items[Sequence], found: Items[tuple[int, ...]], length: int) -> float:
        """Tokens a microsecond, with guesses of at most `length`."""
        num_tokens = 0.0
        for sequence, guess in zip(sequences, found, strict=True):
            hit = self._histories[sequence].hit_rate
            num_tokens += sum(hit**i for i in range(min(length, len(guess)) + 1))
        return num_tokens / self._costs.estimate(len(sequences) * (1 + length))

    def _look_up(self, sequence: Sequence) -> tuple[int, ...]:
        """Return what followed the sequence's last tokens when they stood there before."""
        history = self._histories.get(sequence)
        if history is None:
            history = self._histories[sequence] = _History()
        tokens = sequence.token_ids
        _index(history, tokens)
        room = min(MAX_DRAFTS, sequence.max_total_tokens - len(tokens) - 1)
        has_rested = len(tokens) - history.num_tokens_at_failure >= RETRY_TOKENS
        if has_rested and history.wrong > PRIOR_WRONG:
            history.right, history.wrong = PRIOR_RIGHT, PRIOR_WRONG
            history.num_tokens_at_failure = len(tokens)
        for length in NGRAM_TOKENS:
            place = history.places.get(tuple(tokens[-length:]))
            if place is not None and room > 0:
                return tuple(tokens[place : place + room])
        return ()


def _index(history: _History, tokens: list[int]) -> None:
    """Note every n-gram that something follows, the latest place winning."""
    for end in range(max(history.num_indexed, min(NGRAM_TOKENS)), len(tokens)):
        for length in NGRAM_TOKENS:
            if end >= length:
                history.places[tuple(tokens[end - length : end])] = end
    history.num_indexed = len(tokens)
