"""Who gets which slot of which KV table, under one budget of tokens. Pure Python: no MLX, no clock.

A finished sequence's KV stays in its slot until somebody needs the slot; a request of the same owner that
begins with the same tokens takes that slot and prefills only the rest, which copies nothing. Rank 0 alone
decides, so ranks cannot disagree."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Items
from dataclasses import dataclass

from distributed.frame import PrefixCopy
from distributed.kv_sizes import padded_tokens
from distributed.sequence import Sequence, Slot, Table

# A shorter match is not worth giving up another slot's kept tokens for.
MIN_REUSED_TOKENS = 8
# A match that is longer by so much is taken over where it lies, whatever table that is; KV of fewer tokens is
# copied.
MIN_FOLLOWED_TOKENS = 64


@dataclass(frozen=True)
class SlotLimits:
    """What the tables may hold: `max_kv_tokens` with padding, of them `max_kept_tokens` kept for reuse."""

    num_tables: int
    max_rows: int
    max_kv_tokens: int
    max_kept_tokens: int


class SlotTables:
    """The KV tables of the ring as rank 0 accounts for them.

    Invariant: the padded tokens of all tables never exceed `max_kv_tokens`, the kept ones never
    `max_kept_tokens`."""

    def __init__(self, limits: SlotLimits) -> None:
        self.limits = limits
        self.tables = [Table() for _ in range(limits.num_tables)]
        self._clock = 0

    @property
    def num_kv_tokens(self) -> int:
        """Tokens the tables hold memory for, padding included."""
        return sum(padded_tokens(len(table.slots), table.max_tokens) for table in self.tables)

    @property
    def num_kept_tokens(self) -> int:
        return sum(len(slot.kept_token_ids) for _, slot in self._kept())

    def can_ever_fit(self, sequence: Sequence) -> bool:
        return padded_tokens(1, sequence.max_total_tokens) <= self.limits.max_kv_tokens

    def admit(self, sequence: Sequence, num_groups: int | None = None) -> bool:
        """Give the sequence a slot, reusing kept KV where it matches; return False if nothing fits now.

        Args:
            num_groups: over how many tables running rows should be spread; None: over all.
        """
        wanted = self._fullest(num_groups or len(self.tables))
        place = self._find_reusable(sequence, wanted) or self._find_free(sequence, wanted)
        if place is None and self._drop_idle_tables():
            place = self._find_free(sequence, wanted)
        if place is None:
            return False
        self._occupy(sequence, *place)
        return True

    def find_prefix(self, sequence: Sequence) -> PrefixCopy | None:
        """Return where more of a sequence's first tokens lie than it has: any row of its owner.

        What counts is what is written or on its way round the ring: frames are served in order, so the KV is
        there before the copy.
        """
        best, best_num = None, sequence.num_scheduled_tokens + MIN_REUSED_TOKENS - 1
        for number, table in enumerate(self.tables):
            for index, slot in enumerate(table.slots):
                if slot.owner != sequence.owner or slot.sequence is sequence:
                    continue
                num_matching = min(
                    _common_prefix(slot.written_token_ids, sequence.token_ids), len(sequence.token_ids) - 1
                )
                if num_matching > best_num:
                    best = PrefixCopy(number, index, sequence.slot, num_matching)
                    best_num = num_matching
        return best

    def can_move(self, sequence: Sequence, number: int) -> bool:
        """Tell whether a running sequence has room in another table."""
        index = self._free_slot(self.tables[number])
        return index is not None and self._fits(number, index, sequence)

    def move(self, sequence: Sequence, number: int) -> PrefixCopy:
        """Give a running sequence, nothing of which is in flight, a slot in another table; see `can_move`.

        Its old slot is empty: what is written there comes after the copy, as frames are served in order.
        """
        index = self._free_slot(self.tables[number])
        assert index is not None, "a move to a full table"
        copy = PrefixCopy(sequence.table, sequence.slot, index, sequence.num_cached_tokens)
        self.tables[sequence.table].slots[sequence.slot] = Slot()
        self._seat(sequence, number, index)
        return copy

    def release(self, sequence: Sequence) -> None:
        """Take the slot back; its cached tokens stay for reuse as far as the limit allows."""
        slot = self.tables[sequence.table].slots[sequence.slot]
        assert slot.sequence is sequence
        slot.sequence = None
        slot.kept_token_ids = sequence.token_ids[: sequence.num_cached_tokens]
        slot.owner = sequence.owner
        slot.last_used = self._tick()
        while self.num_kept_tokens > self.limits.max_kept_tokens:
            _, oldest = min(self._kept(), key=lambda item: item[1].last_used)
            oldest.kept_token_ids = ()

    def _kept(self) -> Iterator[tuple[tuple[int, int], Slot]]:
        for number, table in enumerate(self.tables):
            for index, slot in enumerate(table.slots):
                if slot.sequence is None and slot.kept_token_ids:
                    yield (number, index), slot

    def _fullest(self, count: int) -> list[int]:
        """The tables with the most running rows."""
        order = sorted(range(len(self.tables)), key=lambda number: -self.tables[number].num_running)
        return order[:count]

    def _find_reusable(self, sequence: Sequence, wanted: Items[int]) -> tuple[int, int, int] | None:
        """Return (table, slot, matching tokens) of the longest match that fits, or None.

        One in another table than the wanted ones with the fewest rows has to match more tokens: less would be
        copied.
        """
        fewest = min(self.tables[number].num_running for number in wanted)
        even = [number for number in wanted if self.tables[number].num_running == fewest]
        best: tuple[int, int, int] | None = None
        best_worth = MIN_REUSED_TOKENS - 1
        for (number, index), slot in self._kept():
            if slot.owner != sequence.owner or not self._fits(number, index, sequence):
                continue
            # The last prompt token is always run: its logits are wanted.
            num_matching = min(
                _common_prefix(slot.kept_token_ids, sequence.token_ids), len(sequence.token_ids) - 1
            )
            worth = num_matching if number in even else num_matching - MIN_FOLLOWED_TOKENS
            if worth > best_worth:
                best, best_worth = (number, index, num_matching), worth
        return best

    def _find_free(self, sequence: Sequence, wanted: Items[int]) -> tuple[int, int, int] | None:
        """Return (table, slot, 0) in the table with the fewest running rows that has room, or None.

        A wanted table comes before all others.
        """
        order = sorted(
            range(len(self.tables)), key=lambda number: (number not in wanted, self._load(number, sequence))
        )
        for number in order:
            index = self._free_slot(self.tables[number])
            if index is not None and self._fits(number, index, sequence):
                return number, index, 0
        return None

    def _load(self, number: int, sequence: Sequence) -> tuple[int, int]:
        """Rows first, so that microbatches are even; then rows of like length together."""
        table = self.tables[number]
        return table.num_running, abs(table.max_tokens - sequence.max_total_tokens)

    def _free_slot(self, table: Table) -> int | None:
        """Return the lowest empty slot, else a new one, else the slot whose kept tokens are oldest."""
        free = [i for i, slot in enumerate(table.slots) if slot.sequence is None]
        empty = [i for i in free if not table.slots[i].kept_token_ids]
        if empty:
            return empty[0]
        if len(table.slots) < self.limits.max_rows:
            return len(table.slots)
        return min(free, key=lambda i: table.slots[i].last_used) if free else None

    def _fits(self, number: int, index: int, sequence: Sequence) -> bool:
        table = self.tables[number]
        rows = max(len(table.slots), index + 1)
        grown = padded_tokens(rows, max(table.max_tokens, sequence.max_total_tokens))
        now = padded_tokens(len(table.slots), table.max_tokens)
        return self.num_kv_tokens - now + grown <= self.limits.max_kv_tokens

    def _drop_idle_tables(self) -> bool:
        """Reset the tables in which nothing runs; return whether that gave anything back."""
        idle = [table for table in self.tables if table.slots and not table.num_running]
        for table in idle:
            table.slots, table.max_tokens, table.needs_reset = [], 0, True
        return bool(idle)

    def _seat(self, sequence: Sequence, number: int, index: int) -> None:
        table = self.tables[number]
        if index == len(table.slots):
            table.slots.append(Slot())
        table.max_tokens = max(table.max_tokens, sequence.max_total_tokens)
        table.slots[index] = Slot(sequence=sequence, owner=sequence.owner, last_used=self._tick())
        sequence.table, sequence.slot = number, index

    def _occupy(self, sequence: Sequence, number: int, index: int, num_matching: int) -> None:
        self._seat(sequence, number, index)
        sequence.num_reused_tokens = num_matching
        sequence.num_scheduled_tokens = sequence.num_cached_tokens = num_matching

    def _tick(self) -> int:
        self._clock += 1
        return self._clock


def _common_prefix(a: Items[int], b: Items[int]) -> int:
    """Return how many leading items are equal."""
    shorter = min(len(a), len(b))
    if list(a[:shorter]) == list(b[:shorter]):
        return shorter
    return next(i for i in range(shorter) if a[i] != b[i])
