"""KV of finished sequences, kept where it lies: look-up, the beginnings of long entries, eviction by tokens.

A finished sequence's KV stays in its slot until somebody needs the slot. Only requests of the same owner find
it. Knows the slots of the tables; nothing of their sizes or of who gets one. Pure Python: no MLX, no clock.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Items
from dataclasses import dataclass

from distributed.engine.sequence import Sequence, Slot, Table
from distributed.planning.step import PrefixCopy

# A shorter match is not worth giving up another slot's kept tokens for.
MIN_REUSED_TOKENS = 8


@dataclass(frozen=True)
class Match:
    """A kept slot that begins as a sequence does."""

    table: int
    slot: int
    num_tokens: int
    share: float  # of the slot's kept tokens


class PrefixCache:
    """The kept slots of the tables. Invariant: they keep at most `max_tokens` tokens."""

    def __init__(self, tables: Items[Table], max_tokens: int) -> None:
        self._tables, self._max_tokens = tables, max_tokens
        self._num_kept = 0  # counts entries, so that the oldest is known

    @property
    def num_tokens(self) -> int:
        return sum(len(slot.kept_token_ids) for _, _, slot in self._slots() if slot.sequence is None)

    def matches(self, sequence: Sequence) -> Iterator[Match]:
        """The kept slots that begin as a sequence does, and whose place it could take."""
        for table, index, slot in self._slots():
            if slot.sequence is None and (num := _num_matching(slot, sequence)) >= MIN_REUSED_TOKENS:
                yield Match(table, index, num, num / len(slot.kept_token_ids))

    def find_copy(self, sequence: Sequence) -> PrefixCopy | None:
        """Return where more of a sequence's first tokens lie than it has: any row of its owner.

        What counts is what is written or on its way round the ring: frames are served in order, so the KV is
        there before the copy.
        """
        found = (
            PrefixCopy(table, index, sequence.slot, _num_matching(slot, sequence))
            for table, index, slot in self._slots()
            if slot.sequence is not sequence
        )
        best = max(found, key=lambda copy: copy.num_tokens, default=None)
        least = sequence.num_scheduled_tokens + MIN_REUSED_TOKENS
        return best if best is not None and best.num_tokens >= least else None

    def keep(self, slot: Slot, token_ids: Items[int]) -> None:
        """Keep a free slot's first tokens, as many as may be; the oldest entries lose their ends for it."""
        self._num_kept += 1
        slot.kept_token_ids, slot.last_used = token_ids[: self._max_tokens], self._num_kept
        while (excess := self.num_tokens - self._max_tokens) > 0:
            kept = (slot for _, _, slot in self._slots() if slot.sequence is None and slot.kept_token_ids)
            oldest = min(kept, key=lambda slot: slot.last_used)
            oldest.kept_token_ids = oldest.kept_token_ids[: max(0, len(oldest.kept_token_ids) - excess)]

    def _slots(self) -> Iterator[tuple[int, int, Slot]]:
        for number, table in enumerate(self._tables):
            for index, slot in enumerate(table.slots):
                yield number, index, slot


def _num_matching(slot: Slot, sequence: Sequence) -> int:
    """Count the first tokens that are alike; the last prompt token is always run: its logits are wanted."""
    if slot.owner != sequence.owner:
        return 0
    written, wanted = slot.written_token_ids, sequence.token_ids
    most = min(len(written), len(wanted) - 1)
    if list(written[:most]) == wanted[:most]:
        return most
    return next(i for i in range(most) if written[i] != wanted[i])
