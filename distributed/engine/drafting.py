"""Draft tokens by prompt lookup, so that one lap verifies several tokens.

A draft is the tokens that followed the same few tokens earlier in the prompt or answer. A rejected draft
costs time and nothing else: a draw counts only while all drafts before it were drawn as well, and each draw
is keyed by its index. The length of a draft depends on the measured cost of steps of each size and on how
often drafts of this sequence were accepted. Pure Python: no MLX, no clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import Protocol

from distributed.engine.sequence import Sequence

MAX_DRAFTS = 15
NGRAM_TOKENS = (4, 3, 2)  # tried in this order
# With more rows every further token of a step costs much, and the lookup takes rank 0's time.
MAX_DRAFTING_ROWS = 8
# Drafts must promise this factor more tokens a second than no drafts.
MIN_GAIN = 1.1
# Accepted and rejected drafts that every sequence starts with.
PRIOR_RIGHT, PRIOR_WRONG = 2.0, 1.0
DECAY = 0.9  # weight of older drafts against each new one
# A size's cost is the median of its last steps, the lower of two: a stall does not move it. It counts from
# MIN_MEASURED on, and until so many steps of other sizes were measured: then the size is tried again.
MAX_MEASURED, MIN_MEASURED, STALE_STEPS = 5, 2, 500
# A sequence whose drafts were rejected tries again after so many tokens: it may have come to a quotation.
RETRY_TOKENS = 32


class Drafter(Protocol):
    """Proposes draft tokens for decode rows."""

    def propose(self, sequences: Items[Sequence]) -> list[tuple[int, ...]]:
        """Return a draft for each row of one decode group, in order; () for none."""
        ...

    def learn(self, sequence: Sequence, num_drafts: int, num_right: int) -> None:
        """Note how many of a row's draft tokens were accepted."""
        ...

    def note_cost(self, num_tokens: int, busy_us: float) -> None:
        """Note the busy time of all stages together for a decode step of rows x columns tokens."""
        ...

    def forget(self, sequence: Sequence) -> None:
        """Drop the history of a finished sequence."""
        ...


class NoDrafter:
    """Proposes no drafts."""

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
class _SizeCost:
    """The last measurements of one size, without the first, which may hold the compiling of kernels."""

    recent: deque[float] = field(default_factory=lambda: deque(maxlen=MAX_MEASURED))
    noted_at: int = 0  # steps of all sizes until then


class StepCosts:
    """The measured cost of a step over all stages, by its tokens rounded up to a power of two."""

    def __init__(self) -> None:
        self._by_size: dict[int, _SizeCost] = {}
        self._num_steps = 0

    def note(self, num_tokens: int, busy_us: float) -> None:
        """Note one step of rows x columns tokens."""
        self._num_steps += 1
        size = _size_of(num_tokens)
        if size not in self._by_size:
            self._by_size[size] = _SizeCost()
            return
        cost = self._by_size[size]
        if self._is_stale(cost):
            cost.recent.clear()
        cost.recent.append(busy_us)
        cost.noted_at = self._num_steps

    def estimate(self, num_tokens: int) -> float:
        """Return a step's cost in microseconds; a size that is not known costs as much as the next smaller.

        So every size is tried.
        """
        size = _size_of(num_tokens)
        smaller = [
            low_median(cost.recent)
            for seen, cost in self._by_size.items()
            if seen <= size and len(cost.recent) >= MIN_MEASURED and not self._is_stale(cost)
        ]
        return max(smaller, default=1.0)

    def _is_stale(self, cost: _SizeCost) -> bool:
        return self._num_steps - cost.noted_at > STALE_STEPS


def low_median(values: Items[float]) -> float:
    """Return the median, the lower one of two."""
    return sorted(values)[(len(values) - 1) // 2]


def _size_of(num_tokens: int) -> int:
    return (num_tokens - 1).bit_length()


@dataclass
class _History:
    """One sequence's n-grams, and how many of its drafts were accepted."""

    places: dict[tuple[int, ...], int] = field(default_factory=dict)  # n-gram -> index of what followed
    num_indexed: int = 0
    right: float = PRIOR_RIGHT
    wrong: float = PRIOR_WRONG
    num_tokens_at_failure: int = 0

    @property
    def hit_rate(self) -> float:
        return self.right / (self.right + self.wrong)


class PromptLookup:
    """Drafts by prompt lookup; step costs are shared by all sequences."""

    def __init__(self) -> None:
        self._costs = StepCosts()
        self._histories: dict[Sequence, _History] = {}

    def propose(self, sequences: Items[Sequence]) -> list[tuple[int, ...]]:
        """See Drafter. One maximal length for the whole group: its rows are stepped in the same columns."""
        if len(sequences) > MAX_DRAFTING_ROWS:
            return [()] * len(sequences)
        found = [self._look_up(sequence) for sequence in sequences]
        longest = max((len(draft) for draft in found), default=0)
        if not longest:
            return found
        best, best_rate = 0, MIN_GAIN * self._rate(sequences, found, 0)
        for length in sorted(
            {length for length in (1, 2, 3, 5, 7, 11, MAX_DRAFTS, longest) if length <= longest}
        ):
            rate = self._rate(sequences, found, length)
            if rate > best_rate:
                best, best_rate = length, rate
        return [draft[:best] for draft in found]

    def learn(self, sequence: Sequence, num_drafts: int, num_right: int) -> None:
        """See Drafter."""
        history = self._histories[sequence]
        history.right = DECAY * history.right + num_right
        history.wrong = DECAY * history.wrong + (num_right < num_drafts)
        if num_right < num_drafts:
            history.num_tokens_at_failure = len(sequence.token_ids)

    def note_cost(self, num_tokens: int, busy_us: float) -> None:
        """See Drafter."""
        self._costs.note(num_tokens, busy_us)

    def forget(self, sequence: Sequence) -> None:
        """See Drafter."""
        self._histories.pop(sequence, None)

    def _rate(self, sequences: Items[Sequence], found: Items[tuple[int, ...]], length: int) -> float:
        """Return the expected tokens a microsecond with drafts of at most `length` tokens."""
        num_tokens = 0.0
        for sequence, draft in zip(sequences, found, strict=True):
            hit = self._histories[sequence].hit_rate
            num_tokens += sum(hit**i for i in range(min(length, len(draft)) + 1))
        return num_tokens / self._costs.estimate(len(sequences) * (1 + length))

    def _look_up(self, sequence: Sequence) -> tuple[int, ...]:
        """Return the tokens that followed an earlier occurrence of the sequence's last tokens."""
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
    """Index every n-gram that a token follows; the latest place wins."""
    for end in range(max(history.num_indexed, min(NGRAM_TOKENS)), len(tokens)):
        for length in NGRAM_TOKENS:
            if end >= length:
                history.places[tuple(tokens[end - length : end])] = end
    history.num_indexed = len(tokens)
