"""The KV of finished sequences, kept in its slots: look-up, truncation of long entries, eviction by tokens.

A finished sequence's KV stays in its slot until the slot is needed. Only requests of the same owner match it.
States of rows stand at exactly the tokens that were stepped: where a model has them, an entry is kept whole
or not at all, and matches a sequence that begins with all of it.

Knows the slots of the tables; nothing of their sizes or of admission. Pure Python: no MLX, no clock.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Items
from dataclasses import dataclass

from distributed.engine.sequence import Sequence, Slot, Table
from distributed.planning.step import PrefixCopy

# A shorter match is not worth the loss of another slot's kept tokens.
MIN_REUSED_TOKENS = 8
# Of states: a shorter prefix is not worth a copy, and multiples of that many tokens are one place for all
# prompts that begin alike, though two may part a little later by chance. So many tokens before a prompt's end
# are not in its copy, since templates end a prompt otherwise than they go on after an answer.
MIN_SNAPSHOT_TOKENS, TAIL_TOKENS = 64, 16


@dataclass(frozen=True)
class Match:
    """A kept slot whose first tokens are those of a sequence."""

    table: int
    slot: int
    num_tokens: int
    share: float  # of the slot's kept tokens


class PrefixCache:
    """The kept slots of the tables. Invariant: they keep at most `max_tokens` tokens."""

    def __init__(self, tables: Items[Table], max_tokens: int, *, is_whole: bool = False) -> None:
        """Args: is_whole: entries are never cut."""
        self._tables, self._max_tokens, self._is_whole = tables, max_tokens, is_whole
        self._num_kept = 0  # entries so far; `last_used` of the newest

    @property
    def num_tokens(self) -> int:
        return sum(len(slot.kept_token_ids) for _, _, slot in self._slots() if slot.sequence is None)

    def matches(self, sequence: Sequence) -> Iterator[Match]:
        """Yield the kept slots that share a prefix with a sequence, which could take them over."""
        for table, index, slot in self._slots():
            if slot.sequence is None and (num := self.num_reusable(slot, sequence)):
                yield Match(table, index, num, 0.0 if slot.is_shared else num / len(slot.kept_token_ids))

    def find_copy(self, sequence: Sequence) -> PrefixCopy | None:
        """Return a copy from the row, kept or running, with the longest common prefix; None if it is short.

        Tokens of frames in flight count as well: stages take frames in order, so they write that KV before
        they copy it.
        """
        found = (
            PrefixCopy(table, index, sequence.slot, self._num_matching(slot, sequence))
            for table, index, slot in self._slots()
            if slot.sequence is not sequence
        )
        best = max(found, key=lambda copy: copy.num_tokens, default=None)
        least = sequence.num_scheduled_tokens + MIN_REUSED_TOKENS
        return best if best is not None and best.num_tokens >= least else None

    def note_use(self, slot: Slot) -> None:
        """Make it the last to be evicted."""
        self._num_kept += 1
        slot.last_used = self._num_kept

    def keep(self, slot: Slot, token_ids: Items[int]) -> None:
        """Keep a free slot's first tokens, within `max_tokens`; truncate the oldest entries to make room."""
        self.note_use(slot)
        slot.copied_from, slot.is_shared = None, False
        slot.kept_token_ids = self._cut(token_ids, self._max_tokens)
        while (excess := self.num_tokens - self._max_tokens) > 0:
            kept = (slot for _, _, slot in self._slots() if slot.sequence is None and slot.kept_token_ids)
            oldest = min(kept, key=lambda slot: slot.last_used)
            oldest.kept_token_ids = self._cut(oldest.kept_token_ids, len(oldest.kept_token_ids) - excess)

    def find_snapshots(self, sequence: Sequence) -> tuple[int, ...]:
        """Return at how many tokens of a new sequence its states are to be copied, in rising order.

        Where it parts from another row, as two chats with one system prompt do, and shortly before its end.
        """
        if not self._is_whole or sequence.reads_prompt:
            return ()
        others = (slot for _, _, slot in self._slots() if slot.sequence is not sequence)
        parting = max((_num_equal(slot, sequence) for slot in others), default=0)
        parting -= parting % MIN_SNAPSHOT_TOKENS
        end = min(len(sequence.token_ids) - TAIL_TOKENS, self._max_tokens)
        least = sequence.num_reused_tokens + MIN_SNAPSHOT_TOKENS
        return tuple(place for place in sorted({parting, end}) if least <= place <= end)

    def num_reusable(self, slot: Slot, sequence: Sequence) -> int:
        """Count the kept tokens that a sequence would reuse in this slot."""
        num = self._num_matching(slot, sequence)
        return num if num >= MIN_REUSED_TOKENS and slot.is_proven(num) else 0

    def _num_matching(self, slot: Slot, sequence: Sequence) -> int:
        num = _num_equal(slot, sequence)
        return 0 if self._is_whole and num < len(slot.written_token_ids) else num

    def _cut(self, token_ids: Items[int], num_tokens: int) -> Items[int]:
        """Return the first tokens of an entry; none of one that is whole, unless all of it."""
        if self._is_whole and num_tokens < len(token_ids):
            return ()
        return token_ids[: max(0, num_tokens)]

    def _slots(self) -> Iterator[tuple[int, int, Slot]]:
        for number, table in enumerate(self._tables):
            for index, slot in enumerate(table.slots):
                yield number, index, slot


def _num_equal(slot: Slot, sequence: Sequence) -> int:
    """Count the equal first tokens; the last prompt token never counts, since its logits are needed."""
    if slot.owner != sequence.owner or sequence.reads_prompt:
        return 0
    written, wanted = slot.written_token_ids, sequence.token_ids
    most = min(len(written), len(wanted) - 1)
    if list(written[:most]) == wanted[:most]:
        return most
    return next(i for i in range(most) if written[i] != wanted[i])
