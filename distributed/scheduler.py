"""The scheduler: which rows are stepped next. Pure Python: no MLX, no clock, no files.

New, finished and cancelled sequences go in, microbatches come out. A suspect, which may have brought down an
earlier ring, steps alone until it has a new token; the others stay in their slots meanwhile. At most
`max_in_flight` microbatches travel round the ring at once; at most one decode group a table. Ready work is
served in turn (each table's decode group, one prefill chunk), so that a decode row never waits for more than
one chunk."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from distributed.frame import PrefixCopy
from distributed.sequence import Microbatch, Row, Sequence, Status
from distributed.slots import SlotLimits, SlotTables


@dataclass(frozen=True)
class SchedulerLimits:
    """`max_chunk_tokens` bounds rows x columns of one prefill chunk."""

    max_in_flight: int
    max_chunk_tokens: int
    slots: SlotLimits


class Scheduler:
    """Turns sequences into microbatches.

    Invariant: every microbatch given out comes back through `postprocess`, in order.
    """

    def __init__(self, limits: SchedulerLimits) -> None:
        self.limits = limits
        self.slots = SlotTables(limits.slots)
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.in_flight: deque[Microbatch] = deque()
        self._num_microbatches = 0
        self._prefill_served = 0
        self._decode_served = [0] * limits.slots.num_tables

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running or self.in_flight)

    @property
    def num_open(self) -> int:
        """Sequences taken in and not finished."""
        return len(self.waiting) + len(self.running)

    @property
    def max_open(self) -> int:
        """As many as the tables have rows: more would only wait here instead of in the spool."""
        return self.limits.slots.num_tables * self.limits.slots.max_rows

    def can_ever_fit(self, sequence: Sequence) -> bool:
        return self.slots.can_ever_fit(sequence)

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def finish(self, sequence: Sequence) -> None:
        """End a sequence at this step boundary; rows of it that are still in flight come back unused."""
        if sequence.status is Status.WAITING:
            self.waiting.remove(sequence)
        elif sequence.status is Status.RUNNING:
            self.running.remove(sequence)
            self.slots.release(sequence)
        sequence.status = Status.FINISHED

    def schedule(self) -> Microbatch | None:
        """Return the next microbatch, or None if the ring is full or nothing is ready."""
        self._admit()
        if len(self.in_flight) >= self.limits.max_in_flight:
            return None
        rows, copies, is_prefill = self._next_rows()
        if not rows:
            return None
        return self._launch(rows, copies, is_prefill)

    def postprocess(self, microbatch: Microbatch, token_ids: dict[Sequence, int]) -> list[Sequence]:
        """Take back the oldest microbatch with its sampled tokens; return the sequences that got one.

        A sequence that finished while the microbatch was in flight gets none.
        """
        assert self.in_flight and self.in_flight[0] is microbatch, "microbatches come back in order"
        self.in_flight.popleft()
        advanced = []
        for row in microbatch.rows:
            sequence = row.sequence
            if sequence is None or not sequence.is_running:
                continue
            sequence.num_cached_tokens = row.offset + len(row.token_ids)
            if sequence in token_ids:
                sequence.token_ids.append(token_ids[sequence])
                sequence.is_suspect = False
                advanced.append(sequence)
        return advanced

    def _admit(self) -> None:
        """Move waiting sequences into slots, first come first served, as far as the budget goes."""
        while self.waiting and self.slots.admit(self.waiting[0]):
            sequence = self.waiting.popleft()
            sequence.status = Status.RUNNING
            self.running.append(sequence)

    def _next_rows(self) -> tuple[list[Row], list[PrefixCopy], bool]:
        """Return the rows of whatever is ready and was served longest ago, and whether they are a chunk."""
        runnable = self._runnable()
        prefilling = [sequence for sequence in runnable if sequence.is_prefilling]
        decoding = self._decoding_by_table(runnable)
        turns = [(self._decode_served[table], False, table) for table in decoding]
        if prefilling:
            turns.append((self._prefill_served, True, -1))
        if not turns:
            return [], [], False
        _, is_prefill, table = min(turns)
        return (*self._chunk_rows(prefilling), True) if is_prefill else (decoding[table], [], False)

    def _runnable(self) -> list[Sequence]:
        """Return who may step now: all that run, or one suspect when nobody else's rows are in flight."""
        suspect = next((sequence for sequence in self.running if sequence.is_suspect), None)
        if suspect is None:
            return self.running
        is_alone = all(microbatch.sequences == [suspect] for microbatch in self.in_flight)
        return [suspect] if is_alone else []

    def _decoding_by_table(self, runnable: list[Sequence]) -> dict[int, list[Row]]:
        busy = {microbatch.table for microbatch in self.in_flight if not microbatch.is_prefill}
        rows: dict[int, list[Row]] = {}
        for sequence in runnable:
            if sequence.table not in busy and sequence.is_decoding:
                rows.setdefault(sequence.table, []).append(_row(sequence, 1))
        return rows

    def _chunk_rows(self, prefilling: list[Sequence]) -> tuple[list[Row], list[PrefixCopy]]:
        """Return one chunk: the oldest prompt's next tokens; beside it, whole short prompts of its table.

        A prompt that begins as another row does copies that row's KV and steps only the rest.
        """
        first, budget = prefilling[0], self.limits.max_chunk_tokens
        copies = self._start(first)
        rows = [_row(first, min(first.num_unscheduled_tokens, budget))]
        narrowest = widest = len(rows[0].token_ids)
        if widest < first.num_unscheduled_tokens:
            return rows, copies
        for sequence in prefilling[1:]:
            if (len(rows) + 1) * widest > budget:
                break
            if sequence.table != first.table:
                continue
            copy = self._find_copy(sequence)
            num_tokens = len(sequence.token_ids) - (
                copy.num_tokens if copy else sequence.num_scheduled_tokens
            )
            low, high = min(narrowest, num_tokens), max(widest, num_tokens)
            # At most half of a row is padding.
            if 2 * low >= high and (len(rows) + 1) * high <= budget:
                copies += self._start(sequence, copy)
                rows.append(_row(sequence, num_tokens))
                narrowest, widest = low, high
        return rows, copies

    def _find_copy(self, sequence: Sequence) -> PrefixCopy | None:
        """Return a copy that saves tokens of a prompt of which nothing was stepped yet."""
        is_new = sequence.num_scheduled_tokens == sequence.num_reused_tokens
        return self.slots.find_prefix(sequence) if is_new else None

    def _start(self, sequence: Sequence, copy: PrefixCopy | None = None) -> list[PrefixCopy]:
        copy = copy or self._find_copy(sequence)
        if copy is None:
            return []
        sequence.num_reused_tokens = copy.num_tokens
        sequence.num_scheduled_tokens = sequence.num_cached_tokens = copy.num_tokens
        return [copy]

    def _launch(self, rows: list[Row], copies: list[PrefixCopy], is_prefill: bool) -> Microbatch:
        self._num_microbatches += 1
        number = rows[0].sequence.table if rows[0].sequence else 0
        if is_prefill:
            self._prefill_served = self._num_microbatches
        else:
            self._decode_served[number] = self._num_microbatches
        wants_logits = False
        for row in rows:
            assert row.sequence is not None
            row.sequence.num_scheduled_tokens += len(row.token_ids)
            wants_logits = wants_logits or row.sequence.num_unscheduled_tokens == 0
        table = self.slots.tables[number]
        microbatch = Microbatch(
            number=self._num_microbatches,
            table=number,
            rows=tuple(sorted(rows, key=_by_slot)) if is_prefill else _with_holes(rows),
            wants_logits=wants_logits,
            resets_table=table.needs_reset,
            is_prefill=is_prefill,
            copies=tuple(copies),
        )
        table.needs_reset = False
        self.in_flight.append(microbatch)
        return microbatch


def _row(sequence: Sequence, num_tokens: int) -> Row:
    start = sequence.num_scheduled_tokens
    return Row(sequence, sequence.slot, start, tuple(sequence.token_ids[start : start + num_tokens]))


def _by_slot(row: Row) -> int:
    return row.slot


def _with_holes(rows: list[Row]) -> tuple[Row, ...]:
    """Sort decode rows by slot and fill gaps with empty rows, so that stages read their table in place.

    Where more than half would be holes the rows stay as they are, and stages gather them.
    """
    by_slot = {row.slot: row for row in rows}
    first, last = min(by_slot), max(by_slot)
    if last - first + 1 > 2 * len(rows):
        return tuple(sorted(rows, key=_by_slot))
    return tuple(by_slot.get(slot) or Row(None, slot, 0, ()) for slot in range(first, last + 1))
