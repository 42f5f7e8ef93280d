"""What rank 0 asks of every stage: one microbatch, and what to do to KV tables before it.

Plain data. Frames carry it (`distributed/ring/frame.py`), stages carry it out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from operator import add


@dataclass(frozen=True)
class Resize:
    """Give a table, which need not be the step's own, another size: more memory, or less.

    Its row i is the old row `slots[i]`, the rows behind are empty; without slots every row stays where it is,
    as far as the new size goes. Zero rows: the table is dropped."""

    table: int
    num_rows: int
    num_tokens: int
    slots: tuple[int, ...] = ()


@dataclass(frozen=True)
class Clear:
    """Set the KV of a row's tokens from `start` up to `end` to zero, in this step's table.

    For numbers that may not be finite: what a mask hides is multiplied by 0, and 0 x NaN is NaN."""

    slot: int
    start: int
    end: int


@dataclass(frozen=True)
class PrefixCopy:
    """Copy the KV of another row's first tokens into a row of this step's table, before the step."""

    from_table: int
    from_slot: int
    to_slot: int
    num_tokens: int


@dataclass(frozen=True)
class StageStep:
    """One microbatch as a stage sees it: the rows of one KV table that are stepped together.

    `counts[i]` tokens of row i are real, the rest of its `num_tokens` columns is padding on the right; a row
    of count 0 is a hole in the table, computed but never written. Resizes come first, then clears, then
    copies, then the layers. `is_alone` says that no other step is under way, and none will be before this one
    is back.
    """

    table: int
    slots: tuple[int, ...]
    offsets: tuple[int, ...]
    counts: tuple[int, ...]
    num_tokens: int
    wants_logits: bool = True
    copies: tuple[PrefixCopy, ...] = ()
    resizes: tuple[Resize, ...] = ()
    clears: tuple[Clear, ...] = ()
    is_alone: bool = False

    def one_further(self) -> StageStep:
        """Return the step that follows one of a token a row, if its rows go on and nothing else changes."""
        offsets = tuple(map(add, self.offsets, self.counts))
        return replace(self, offsets=offsets, copies=(), resizes=(), clears=())

    @property
    def num_rows(self) -> int:
        return len(self.slots)

    @property
    def num_kv_tokens(self) -> int:
        """Tokens that its longest row has after the step: so far the table is read."""
        return max(offset + count for offset, count in zip(self.offsets, self.counts, strict=True))
