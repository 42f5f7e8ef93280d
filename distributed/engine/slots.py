"""Assigns sequences to slots of the KV tables, within one budget of tokens. Pure Python: no MLX, no clock.

A table has room for the tokens of its rows and one step of growth, not for the longest possible answers. Rank
0 decides its size and sends it to the stages (Resize), so that the accounts equal their memory.

A request that shares most of a kept slot's tokens takes over that slot and prefills only the rest, without a
copy (see prefix_cache.py). Only rank 0 decides, so ranks cannot disagree."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass

from distributed.engine.prefix_cache import PrefixCache
from distributed.engine.sequence import Drawn, Row, Sequence, Slot, Table
from distributed.planning.kv_sizes import next_tokens, round_rows, round_tokens
from distributed.planning.step import Clear, PrefixCopy, Resize

# A match longer by this much is taken over in its own table, however full that is; a shorter one is copied.
MIN_FOLLOWED_TOKENS = 64
# Where a smaller share of a slot's kept tokens matches, as in two chats with one system prompt, the prefix is
# copied and the slot kept, if another slot is free.
TAKEN_SHARE = 0.5
# A preempted sequence runs again when each row has room to grow by this much: its second prefill must pay.
SLACK_TOKENS, SLACK_SHARE = 512, 0.125


@dataclass(frozen=True)
class SlotLimits:
    """Limits of the tables: `max_kv_tokens` includes padding, `max_kept_tokens` are kept for reuse.

    `row_tokens`: the states of a row take as much memory as the KV of so many tokens; 0: there are none. They
    are windows of `window` tokens, which shorter rows do not fill; 0: they are states of one size."""

    num_tables: int
    max_rows: int
    max_kv_tokens: int
    max_kept_tokens: int
    row_tokens: int = 0
    window: int = 0

    @property
    def has_states(self) -> bool:
        """Whether rows have states, which are neither rolled back nor cut to a prefix."""
        return self.row_tokens > 0

    def table_tokens(self, num_rows: int, num_tokens: int) -> int:
        """Return what a table of this size takes of `max_kv_tokens`."""
        states = self.row_tokens
        if num_tokens < self.window:
            states = -(-states * num_tokens // self.window)
        return num_rows * (num_tokens + states)


class SlotTables:
    """The KV tables of the ring as rank 0 accounts for them.

    Invariant: the tables never have room for more than `max_kv_tokens` tokens, and running rows have room for
    theirs."""

    def __init__(self, limits: SlotLimits) -> None:
        self.limits = limits
        self.tables = [Table() for _ in range(limits.num_tables)]
        self.prefix_cache = PrefixCache(self.tables, limits.max_kept_tokens, is_whole=limits.has_states)
        # Not sent yet, in order; the flag: this one only adds rows or tokens.
        self._resizes: list[tuple[Resize, bool]] = []
        self._num_changes = 0  # releases and tightenings: a refused sequence may fit after one
        self._refused: tuple[Sequence, int] | None = None

    @property
    def num_kv_tokens(self) -> int:
        """Tokens that the tables have memory for, padding and states of rows included."""
        return sum(self.limits.table_tokens(table.num_rows, table.num_tokens) for table in self.tables)

    def admit(self, sequence: Sequence, *, is_gathered: bool = False) -> bool:
        """Give the sequence a slot, reusing kept KV that matches; return False if it does not fit now.

        Args:
            is_gathered: prefer the table with the most rows; else spread rows evenly.
        """
        if self._refused == (sequence, self._num_changes):
            return False  # nothing was released since, and rows only grow
        order = self._by_preference(sequence, is_gathered=is_gathered)
        place = (
            self._find_reusable(sequence, order, TAKEN_SHARE)
            or self._find_free(sequence, order)
            or self._find_reusable(sequence, order, 0.0)
        )
        if place is None and self.could_fit(sequence):
            for number in self._by_waste():
                self._tighten(number)
                place = self._find_free(sequence, order)
                if place is not None:
                    break
        if place is None:
            self._refused = (sequence, self._num_changes)
            return False
        number, index, num_matching = place
        self._seat(sequence, number, index)
        sequence.begin_at(num_matching)
        sequence.snapshots = self.prefix_cache.find_snapshots(sequence)
        return True

    def snapshot(self, sequence: Sequence) -> PrefixCopy | None:
        """Keep a copy of a running row in a free slot of its table, if it stands where it is to be copied."""
        num_tokens, table = sequence.num_scheduled_tokens, self.tables[sequence.table]
        if num_tokens not in sequence.snapshots or num_tokens == sequence.num_reused_tokens:
            return None
        index = self._free_slot(table)
        shape = None if index is None else self._room(sequence.table, index + 1, table.num_tokens)
        if index is None or shape is None:
            return None
        self._resize(sequence.table, *shape)
        if index == len(table.slots):
            table.slots.append(Slot())
        slot = table.slots[index]
        slot.forget_copy()
        slot.owner = sequence.owner
        self.prefix_cache.keep(slot, sequence.token_ids[:num_tokens])
        slot.copied_from, slot.num_copied = sequence, num_tokens
        slot.is_shared = num_tokens != sequence.snapshots[-1]
        return PrefixCopy(sequence.table, sequence.slot, index, num_tokens)

    def extend(self, sequence: Sequence) -> bool:
        """Make room for all tokens of a running sequence, and for a step more if memory is free.

        Drops kept tokens if it must. Returns False if only a preemption could make room.
        """
        if len(sequence.token_ids) <= self.tables[sequence.table].num_tokens:
            return True
        if self._grow(sequence, _wish(sequence)) or self._grow(sequence, len(sequence.token_ids)):
            return True
        for number in self._by_waste():
            self._tighten(number)
            if self._grow(sequence, len(sequence.token_ids)):
                return True
        return False

    def take_orders(self, number: int, slots: Items[int]) -> tuple[tuple[Resize, ...], tuple[Clear, ...]]:
        """Return the resizes and clears for the next frame, with these rows of a table; each is sent once."""
        resizes, self._resizes = tuple(order for order, _ in self._resizes), []
        clears = []
        for index in slots:
            slot = self.tables[number].slots[index]
            if slot.dirty:
                clears.append(Clear(index, slot.dirty.start, slot.dirty.stop))
                slot.dirty = range(0)
        return resizes, tuple(clears)

    def note_proof(self, sequence: Sequence, row: Row, drawn: Drawn) -> None:
        """Note which draws were finite: a finite draw proves all KV before it, since NaN would have spread.

        Args:
            drawn: the row's draws; None: its logits are not finite.
        """
        num_finite = next((i for i, token in enumerate(drawn) if token is None), len(drawn))
        end = row.offset + row.num_known + num_finite - 1
        if num_finite:
            sequence.num_proven_tokens = min(end, sequence.num_cached_tokens)
        if num_finite == len(drawn):
            sequence.num_stepped_tokens = sequence.num_proven_tokens
        else:
            self.tables[sequence.table].slots[sequence.slot].soil(end, row.end)

    def release(self, sequence: Sequence, *, keeps: bool = True) -> None:
        """Free the slot; keep the prefix that is proven finite for reuse."""
        slot = self.tables[sequence.table].slots[sequence.slot]
        assert slot.sequence is sequence
        slot.sequence = None
        slot.soil(sequence.num_proven_tokens, sequence.num_stepped_tokens)
        slot.owner = sequence.owner
        if self.limits.has_states:  # they stand at what was scheduled last
            keeps = keeps and sequence.num_proven_tokens == sequence.num_scheduled_tokens
        self.prefix_cache.keep(slot, sequence.token_ids[: sequence.num_proven_tokens if keeps else 0])
        self._num_changes += 1

    def _by_preference(self, sequence: Sequence, *, is_gathered: bool) -> list[int]:
        """Sort the tables by running rows, the most or the fewest first, then by similar length."""
        sign, wish = -1 if is_gathered else 1, _wish(sequence)

        def load(number: int) -> tuple[int, int]:
            table = self.tables[number]
            return sign * table.num_running, abs(table.num_tokens - wish)

        return sorted(range(len(self.tables)), key=load)

    def _find_reusable(
        self, sequence: Sequence, order: Items[int], min_share: float
    ) -> tuple[int, int, int] | None:
        """Return (table, slot, matching tokens) of the longest match that fits, or None.

        Only slots of which at least `min_share` matches, since the rest of their kept tokens is lost. A match
        in a table with more or fewer running rows than the first of `order` must be longer, as the prefix
        could be copied instead.
        """
        num_rows = self.tables[order[0]].num_running
        best, best_worth = None, 0
        for match in self.prefix_cache.matches(sequence):
            is_even = self.tables[match.table].num_running == num_rows
            worth = match.num_tokens - (0 if is_even else MIN_FOLLOWED_TOKENS)
            if (
                worth > best_worth
                and match.share >= min_share
                and self._fits(match.table, match.slot, sequence)
            ):
                best, best_worth = (match.table, match.slot, match.num_tokens), worth
        return best

    def _find_free(self, sequence: Sequence, order: Items[int]) -> tuple[int, int, int] | None:
        """Return (table, slot, matching tokens) in the first table of `order` that has room, or None."""
        for number in order:
            table = self.tables[number]
            index = self._free_slot(table)
            if index is not None and self._fits(number, index, sequence):
                is_new = index == len(table.slots)
                return (
                    number,
                    index,
                    0 if is_new else self.prefix_cache.num_reusable(table.slots[index], sequence),
                )
        return None

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
        if self._room(number, index + 1, _wish(sequence)) is None:
            return False
        return not sequence.num_preemptions or self._has_slack(number, index + 1, sequence)

    def _room(self, number: int, num_rows: int, num_tokens: int) -> tuple[int, int] | None:
        """Return (rows, tokens) of a table with room for these; None: over the budget."""
        table = self.tables[number]
        others = self.num_kv_tokens - self.limits.table_tokens(table.num_rows, table.num_tokens)
        tokens = max(table.num_tokens, round_tokens(num_tokens))
        for wanted in (min(round_rows(num_rows), self.limits.max_rows), num_rows):
            rows = max(table.num_rows, wanted)
            if others + self.limits.table_tokens(rows, tokens) <= self.limits.max_kv_tokens:
                return rows, tokens
        return None

    def _has_slack(self, number: int, num_rows: int, sequence: Sequence) -> bool:
        """Whether all rows could grow by SLACK_TOKENS or SLACK_SHARE with the sequence admitted."""
        total = 0
        for other, table in enumerate(self.tables):
            running = [*table.running, sequence] if other == number else table.running
            rows = max(table.num_rows, num_rows) if other == number else table.num_rows
            tokens = max([table.num_tokens, *(round_tokens(_with_slack(each)) for each in running)])
            total += self.limits.table_tokens(rows, tokens)
        return total <= self.limits.max_kv_tokens

    def _grow(self, sequence: Sequence, num_tokens: int) -> bool:
        table = self.tables[sequence.table]
        shape = self._room(sequence.table, table.num_rows, num_tokens)
        if shape is None:
            return False
        self._resize(sequence.table, *shape)
        return True

    def could_fit(self, sequence: Sequence, *, counts_yielding: bool = True) -> bool:
        """Whether a sequence would get a row if all tables were tightened.

        Args:
            counts_yielding: False: if the rows that can yield were free as well.
        """
        wish = _with_slack if sequence.num_preemptions else _wish
        staying = [
            [each for each in table.running if counts_yielding or not each.can_yield] for table in self.tables
        ]
        sizes = [(len(rows), max((round_tokens(wish(each)) for each in rows), default=0)) for rows in staying]
        size = self.limits.table_tokens
        total = sum(size(rows, tokens) for rows, tokens in sizes)
        own = round_tokens(wish(sequence))
        return any(
            rows < self.limits.max_rows
            and total - size(rows, tokens) + size(rows + 1, max(tokens, own)) <= self.limits.max_kv_tokens
            for rows, tokens in sizes
        )

    def _tight(self, table: Table) -> tuple[int, int]:
        """Return (rows, tokens) that a table's running rows need."""
        wish = max((round_tokens(_wish(sequence)) for sequence in table.running), default=0)
        return table.num_running, min(table.num_tokens, wish)

    def _by_waste(self) -> list[int]:
        """List the tables larger than their rows need: those without running rows first, then by waste."""
        wastes = []
        for number, table in enumerate(self.tables):
            rows, tokens = self._tight(table)
            size = self.limits.table_tokens
            waste = size(table.num_rows, table.num_tokens) - size(rows, tokens)
            if waste:
                wastes.append((rows > 0, -waste, number))
        return [number for _, _, number in sorted(wastes)]

    def _tighten(self, number: int) -> None:
        """Drop kept tokens, empty rows and unused columns of a table."""
        table = self.tables[number]
        self._num_changes += 1
        rows, tokens = self._tight(table)
        left = tuple(index for index, slot in enumerate(table.slots) if slot.sequence is not None)
        table.slots = [table.slots[index] for index in left]
        for index, sequence in enumerate(table.running):
            sequence.slot = index
        self._resize(number, rows, tokens, () if left == tuple(range(rows)) else left)

    def _resize(self, number: int, num_rows: int, num_tokens: int, slots: tuple[int, ...] = ()) -> None:
        table = self.tables[number]
        if not slots and (table.num_rows, table.num_tokens) == (num_rows, num_tokens):
            return
        order = Resize(number, num_rows, num_tokens, slots)
        only_grows = not slots and num_rows >= table.num_rows and num_tokens >= table.num_tokens
        earlier = [i for i, (each, _) in enumerate(self._resizes) if each.table == number]
        if only_grows and earlier and self._resizes[earlier[-1]][1]:
            del self._resizes[earlier[-1]]  # one copy of the table instead of two
        self._resizes.append((order, only_grows))
        table.num_rows, table.num_tokens = num_rows, num_tokens

    def _seat(self, sequence: Sequence, number: int, index: int) -> None:
        table = self.tables[number]
        shape = self._room(number, index + 1, _wish(sequence))
        assert shape is not None, "the caller checked that it fits"
        self._resize(number, *shape)
        if index == len(table.slots):
            table.slots.append(Slot())
        slot = table.slots[index]
        slot.forget_copy()
        slot.sequence, slot.kept_token_ids, slot.owner = sequence, (), sequence.owner
        sequence.table, sequence.slot = number, index


def _wish(sequence: Sequence) -> int:
    """Tokens that a row should have room for: its own and a step of growth, at most its longest answer."""
    return min(next_tokens(len(sequence.token_ids)), sequence.max_total_tokens)


def _with_slack(sequence: Sequence) -> int:
    num_tokens = len(sequence.token_ids)
    slack = max(SLACK_TOKENS, int(SLACK_SHARE * num_tokens))
    return min(num_tokens + slack, sequence.max_total_tokens)
