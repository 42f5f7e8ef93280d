"""Size and rows of one prefill chunk: pure arithmetic over prompts. No MLX, no slots, no clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence as Items

from distributed.engine.drafting import low_median
from distributed.engine.prefix_cache import MIN_REUSED_TOKENS
from distributed.engine.sequence import Sequence
from distributed.planning.capacities import MIN_SCORED_TOKENS

MAX_CHUNK_ROWS = 16
# A chunk delays decode rows by about this, however slow the machine and long the prompt.
MAX_WAIT_US = 200_000.0
# A ring whose speed is not known yet begins with a chunk of at most so many tokens.
FIRST_TOKENS = 32
MIN_PACED_TOKENS = 16
NUM_PACED_CHUNKS = 3  # whose median counts, as one may have stalled; later chunks of a prompt are slower
# The fixed cost of a step, in tokens.
_STEP_TOKENS = 32


class ChunkPace:
    """How large a chunk may be for the time that it may take, from the measured time of earlier chunks.

    A size's first chunk does not count, since kernels may have been compiled for it; only the very first of
    all does until there is another, since on a slow machine a chunk may take minutes.
    """

    def __init__(self, min_tokens: int = MIN_PACED_TOKENS, longest_us: float | None = None) -> None:
        """Make the pace of a ring.

        Args:
            min_tokens: while decode rows wait, a chunk is never made smaller than this.
            longest_us: the most that a chunk may take in a stage even if nothing waits; None: no limit.
        """
        self._min_tokens, self._longest_us = min_tokens, longest_us
        self._us_per_token: deque[float] = deque(maxlen=NUM_PACED_CHUNKS)
        self._sizes: set[int] = set()  # measured, as powers of two

    def note(self, num_tokens: int, slowest_us: float) -> None:
        """Note the microseconds that the slowest stage took for a chunk of rows x columns tokens."""
        size, measured = num_tokens.bit_length(), slowest_us / (num_tokens + _STEP_TOKENS)
        if size not in self._sizes:
            self._sizes.add(size)
            if self._us_per_token:
                return
        self._us_per_token.append(measured)

    def budget(self, most: int, *, is_waited_for: bool = True) -> int:
        """Return the tokens of a chunk, at most `most`; if decode rows wait, it takes about MAX_WAIT_US."""
        if not self._us_per_token:
            return most if self._longest_us is None else min(most, FIRST_TOKENS)
        if self._longest_us is not None:
            most = min(most, self._num_tokens(self._longest_us, MIN_PACED_TOKENS))
        return min(most, self._num_tokens(MAX_WAIT_US, self._min_tokens)) if is_waited_for else most

    def _num_tokens(self, us: float, least: int) -> int:
        tokens = int(us / low_median(self._us_per_token)) - _STEP_TOKENS
        return max(least, tokens // MIN_PACED_TOKENS * MIN_PACED_TOKENS)


def within_scores(budget: int, context: int, max_scores: int) -> int:
    """Return the tokens of a chunk, at most `budget`, whose attention scores stay within `max_scores`.

    Args:
        context: the most tokens that a row of the chunk attends to.
        max_scores: tokens x context.
    """
    fitting = max_scores // context // MIN_SCORED_TOKENS * MIN_SCORED_TOKENS
    return min(budget, max(MIN_SCORED_TOKENS, fitting))


def best_fill(num_left: Items[int], budget: int) -> tuple[int, int]:
    """Return how many of the oldest prompts step together and in how many columns.

    Rows x columns is within `budget`; the choice has the largest share of real tokens in the step's cost.

    Args:
        num_left: tokens left to step, oldest prompt first; at least one prompt, each with at least one.
    """
    best, best_share = (1, min(num_left[0], budget)), 0.0
    for num_rows in range(1, min(len(num_left), budget) + 1):
        rows = num_left[:num_rows]
        width = min(max(rows), budget // num_rows)
        share = sum(min(left, width) for left in rows) / (num_rows * width + _STEP_TOKENS)
        if share > best_share:
            best, best_share = (num_rows, width), share
    return best


def could_copy(sequence: Sequence, other: Sequence, num_done: int) -> bool:
    """Whether a prompt not stepped yet could copy a longer prefix once `other` has been stepped."""
    is_new = sequence.num_scheduled_tokens == sequence.num_reused_tokens
    if sequence.owner != other.owner or sequence.reads_prompt or not is_new:
        return False
    end = num_done + MIN_REUSED_TOKENS
    return end < len(sequence.token_ids) and sequence.token_ids[:end] == other.token_ids[:end]
