"""What goes into one prefill chunk: pure arithmetic over prompts. No MLX, no slots, no clock."""

from __future__ import annotations

from collections.abc import Sequence as Items

from distributed.sequence import Sequence
from distributed.slots import MIN_REUSED_TOKENS

MAX_CHUNK_ROWS = 16
# A step costs about as much as this many tokens before its first one (SmolLM2, float32, one core).
_STEP_TOKENS = 32


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
