"""What goes into one prefill chunk: pure arithmetic over prompts. No MLX, no slots, no clock."""

from __future__ import annotations

from collections.abc import Sequence as Items

from distributed.engine.prefix_cache import MIN_REUSED_TOKENS
from distributed.engine.sequence import Sequence

MAX_CHUNK_ROWS = 16
# About what a chunk may hold running answers up, however slow the machine and long the prompt.
MAX_WAIT_US = 200_000.0
MIN_PACED_TOKENS = 16
PACE_WEIGHT = 0.3  # of the newest chunk: attention makes the later chunks of a prompt slower
# A step costs about as much as this many tokens before its first one (SmolLM2, float32, one core).
_STEP_TOKENS = 32
# A chunk's scores, tokens times context for each head, are in memory at once: from so long a context on,
# chunks shrink, in steps of so many tokens and never below that.
FULL_CHUNK_CONTEXT = 4096
MIN_SCORED_TOKENS = 64


class ChunkPace:
    """How large a chunk may be while answers wait for it, by what chunks were measured to take."""

    def __init__(self, min_tokens: int = MIN_PACED_TOKENS) -> None:
        """Args: min_tokens: a chunk is never made smaller than this."""
        self._min_tokens = min_tokens
        self._us_per_token: float | None = None

    def note(self, num_tokens: int, slowest_us: float) -> None:
        """Take in a chunk of rows x columns tokens, and how long its slowest stage worked on it."""
        measured = slowest_us / (num_tokens + _STEP_TOKENS)
        old = self._us_per_token
        self._us_per_token = measured if old is None else old + PACE_WEIGHT * (measured - old)

    def budget(self, most: int) -> int:
        """Return the tokens of a chunk that takes about MAX_WAIT_US, at most `most`."""
        if self._us_per_token is None:
            return most
        tokens = int(MAX_WAIT_US / self._us_per_token) - _STEP_TOKENS
        return min(most, max(self._min_tokens, tokens // MIN_PACED_TOKENS * MIN_PACED_TOKENS))


def within_scores(budget: int, context: int, max_scores: int) -> int:
    """Return the tokens of a chunk, at most `budget`, whose scores over the context take no more memory.

    Args:
        context: the most tokens that one of them sees.
        max_scores: tokens times context.
    """
    fitting = max_scores // context // MIN_SCORED_TOKENS * MIN_SCORED_TOKENS
    return min(budget, max(MIN_SCORED_TOKENS, fitting))


def best_fill(num_left: Items[int], budget: int) -> tuple[int, int]:
    """Return how many of the oldest prompts step together and in how many columns.

    The product of both is within `budget`; what counts is the share of real tokens in what the step costs.

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
    """Whether a prompt of which nothing was stepped yet could copy much more once `other` was stepped."""
    if sequence.owner != other.owner or sequence.num_scheduled_tokens != sequence.num_reused_tokens:
        return False
    end = num_done + MIN_REUSED_TOKENS
    return end < len(sequence.token_ids) and sequence.token_ids[:end] == other.token_ids[:end]
