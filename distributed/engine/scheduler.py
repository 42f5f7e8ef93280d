"""The scheduler: which rows are stepped next. Pure Python: no MLX, no clock, no files.

New, finished and cancelled sequences go in, microbatches come out. A suspect, which may have brought down an
earlier ring, steps alone until it has a new token; the others keep their slots meanwhile. At most
`max_in_flight` microbatches are in flight at once, at most one decode group a table. Ready work is served in
turn (each table's decode group, one prefill chunk), so that a decode row never waits for more than one chunk.
While more sequences prefill than decode, a chunk follows every decode group.

Sequences that yield wait behind all others. They give up their rows to those, and rest while a prompt of
those is left to step."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass, replace

from distributed.engine.chunks import (
    MAX_CHUNK_ROWS,
    MIN_PACED_TOKENS,
    ChunkPace,
    best_fill,
    could_copy,
    within_scores,
)
from distributed.engine.drafting import Drafter, NoDrafter
from distributed.engine.sequence import Advance, Drawn, Microbatch, Row, Sequence, Status, arrange, make_row
from distributed.engine.slots import SlotLimits, SlotTables
from distributed.planning.step import PrefixCopy


@dataclass(frozen=True)
class SchedulerLimits:
    """How much may be in flight, and how large a prefill chunk may be.

    `max_chunk_tokens` bounds rows x columns of a chunk. With `paces_chunks` a chunk has fewer tokens where
    one takes long, but never fewer than `min_paced_tokens`: a step that reads all experts for a few tokens
    wastes its time; `max_chunk_us` bounds its time in a stage even if no other row waits. `max_chunk_scores`
    bounds rows x columns x context, the scores that attention holds in memory. Up to `max_gathered` open
    sequences share one table. What yields stays within `max_yielding_in_flight`, since a new prompt waits for
    all that is in flight.
    """

    max_in_flight: int
    max_chunk_tokens: int
    slots: SlotLimits
    paces_chunks: bool = False
    min_paced_tokens: int = MIN_PACED_TOKENS
    max_chunk_us: float | None = None
    max_chunk_scores: int = 1 << 40
    max_gathered: int = 0
    max_yielding_in_flight: int = 1 << 10


class Scheduler:
    """Turns sequences into microbatches.

    Invariant: every microbatch that `schedule` returns comes back through `postprocess`, in order.
    """

    def __init__(self, limits: SchedulerLimits, drafter: Drafter | None = None) -> None:
        """Args: drafter: proposes draft tokens; None: no drafts."""
        self.limits = limits
        self._max_ahead = limits.slots.num_tables * limits.max_chunk_tokens  # a chunk for each table
        self._pace = ChunkPace(limits.min_paced_tokens, limits.max_chunk_us)
        self._drafter = drafter or NoDrafter()
        self.slots = SlotTables(limits.slots)
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.in_flight: deque[Microbatch] = deque()
        self._num_microbatches = 0
        self._prefill_served = 0
        self._decode_served = [0] * limits.slots.num_tables
        self.num_preemptions = 0

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running or self.in_flight)

    @property
    def num_open(self) -> int:
        """Sequences added and not finished."""
        return len(self.waiting) + len(self.running)

    @property
    def num_free(self) -> int:
        """How many more sequences the tables have rows for; beyond that, requests wait in the spool."""
        return self.limits.slots.num_tables * self.limits.slots.max_rows - self.num_open

    @property
    def num_claimable(self) -> int:
        """Rows for sequences that do not yield: the free ones, and those that others yield."""
        return self.num_free + sum(sequence.yields for sequence in (*self.running, *self.waiting))

    def add(self, sequence: Sequence) -> None:
        if sequence.yields:
            self.waiting.append(sequence)
        else:
            self.waiting.insert(self._num_first, sequence)

    @property
    def _num_first(self) -> int:
        """How many waiting sequences do not yield; they come before all that do."""
        return sum(not sequence.yields for sequence in self.waiting)

    def finish(self, sequence: Sequence) -> None:
        """End a sequence between steps; `postprocess` ignores rows of it that are still in flight."""
        if sequence.status is Status.WAITING:
            self.waiting.remove(sequence)
        elif sequence.status is Status.RUNNING:
            self.running.remove(sequence)
            self.slots.release(sequence)
        self._drafter.forget(sequence)
        sequence.status = Status.FINISHED

    def schedule(self) -> Microbatch | None:
        """Return the next microbatch, or None if the ring is full or nothing is ready."""
        self._make_room()
        self._admit()
        if len(self.in_flight) >= self.limits.max_in_flight:
            return None
        rows, copies, is_prefill = self._next_rows()
        if not rows:
            return None
        return self._launch(rows, copies, is_prefill)

    def postprocess(self, microbatch: Microbatch, drawn: Mapping[Sequence, Drawn]) -> list[Advance]:
        """Take the draws of the oldest microbatch; return which sequences got which tokens.

        A sequence that finished while the microbatch was in flight gets none.

        Args:
            drawn: for each row that wants tokens, a draw after its last known token and one after each draft;
                None where the logits are not finite.
        """
        assert self.in_flight and self.in_flight[0] is microbatch, "microbatches come back in order"
        self.in_flight.popleft()
        advanced = []
        for row in microbatch.rows:
            sequence = row.sequence
            if sequence is None or not row.is_wanted:
                continue
            sequence.num_cached_tokens = row.offset + row.num_known
            advance = self._advance(sequence, row, drawn[sequence]) if sequence in drawn else None
            if advance is not None:
                advanced.append(advance)
        return advanced

    def _advance(self, sequence: Sequence, row: Row, drawn: Drawn) -> Advance | None:
        """Append a row's draws up to the first that differs from its draft."""
        accepted = row.accept(drawn)
        new = sequence.extend([token for token in accepted if token is not None])
        is_finite = None not in accepted or sequence.ended_by is not None
        if row.num_drafts:
            # The KV of accepted drafts is already written; later steps overwrite that of the others.
            sequence.num_cached_tokens = row.offset + row.num_known + len(new) - 1
            sequence.num_scheduled_tokens = sequence.num_cached_tokens
            self._drafter.learn(sequence, row.num_drafts, len(accepted) - 1)
        self.slots.note_proof(sequence, row, drawn)
        if not is_finite and self._can_be_innocent(sequence, row):
            return Advance(sequence, new) if new else None
        return Advance(sequence, new, is_finite)

    def _can_be_innocent(self, sequence: Sequence, row: Row) -> bool:
        """Whether another row or a draft may have caused non-finite logits; then step again without those.

        A masked 0 times NaN is NaN: a draft can spoil the tokens before it, and a prefix copy can copy what
        later tokens of its source spoiled.
        """
        if sequence.is_careful or not (row.num_drafts or sequence.is_on_trust):
            return False
        sequence.is_careful = True
        if not row.num_drafts:
            self._put_back(sequence)
        return True

    def note_cost(self, microbatch: Microbatch, stages_us: Items[float]) -> None:
        """Note each stage's busy time for a microbatch, in microseconds; drafts and chunks depend on it."""
        num_tokens = len(microbatch.rows) * microbatch.num_tokens
        if microbatch.is_prefill:
            self._pace.note(num_tokens, max(stages_us))
        else:
            self._drafter.note_cost(num_tokens, sum(stages_us))

    def _make_room(self) -> None:
        """Make room for the KV that running rows write next; if there is none, preempt the youngest.

        Those that yield go first. The oldest of the others is never preempted, and alone it always fits, so
        every sequence finishes.
        """
        for sequence in list(self._runnable()):
            while sequence.is_running and not self.slots.extend(sequence):
                assert len(self.running) > 1, "a single row always has room"
                # A suspect stays: it is marked in the spool as running alone.
                others = [each for each in self.running[::-1] if each is not sequence or not each.is_suspect]
                self._put_back(next((each for each in others if each.yields), others[0]))
                self.num_preemptions += 1

    def _put_back(self, sequence: Sequence) -> None:
        """Preempt a running sequence: it waits again, first of its class, without its KV, with its tokens."""
        self.running.remove(sequence)
        self.slots.release(sequence, keeps=False)
        sequence.begin_at(0)
        sequence.status = Status.WAITING
        sequence.num_preemptions += 1
        self.waiting.insert(self._num_first if sequence.yields else 0, sequence)

    def _admit(self) -> None:
        """Move waiting sequences into slots, first come first served, within the KV budget.

        A sequence gets its slot only shortly before its prefill: the later the table is chosen, the better
        its rows are spread, and the more of the prompt can be copied.
        """
        while self.waiting and self._is_due(self.waiting[0]) and self._has_slot(self.waiting[0]):
            sequence = self.waiting.popleft()
            sequence.status = Status.RUNNING
            self.running.append(sequence)

    def _is_due(self, sequence: Sequence) -> bool:
        """Whether less than a chunk for each table is ahead of a waiting sequence."""
        ahead = (each for each in self.running if each.is_prefilling and (sequence.yields or not each.yields))
        return sum(each.num_unscheduled_tokens for each in ahead) < self._max_ahead

    def _has_slot(self, sequence: Sequence) -> bool:
        """Give a waiting sequence a slot, if need be one that others yield: first the cheapest to resume."""
        is_gathered = self.num_open <= self.limits.max_gathered
        if self.slots.admit(sequence, is_gathered=is_gathered):
            return True
        if sequence.yields or not self.slots.could_fit(sequence, counts_yielding=False):
            return False
        yielding = [each for each in self.running if each.can_yield]
        for each in sorted(yielding, key=lambda each: each.num_scheduled_tokens):
            self._put_back(each)
            if self.slots.admit(sequence, is_gathered=is_gathered):
                return True
        return False

    def _next_rows(self) -> tuple[list[Row], list[PrefixCopy], bool]:
        """Return the rows of the ready work served longest ago, their copies, and whether it is a chunk."""
        runnable, waiting = self._runnable(), len(self.waiting)
        if any(sequence.is_prefilling and not sequence.yields for sequence in runnable):
            runnable, waiting = [each for each in runnable if not each.yields], self._num_first
        elif len(self.in_flight) >= self.limits.max_yielding_in_flight:
            tables = {each.table for each in runnable if not each.yields}
            runnable = [each for each in runnable if each.is_decoding and each.table in tables]
        prefilling = [sequence for sequence in runnable if sequence.is_prefilling]
        num_others = len(runnable) - len(prefilling)
        decoding = self._decoding_by_table(runnable)
        table = min(decoding, key=self._decode_served.__getitem__, default=None)
        is_rush = len(prefilling) + waiting > num_others
        if prefilling and (table is None or self._is_chunks_turn(table, is_rush=is_rush)):
            return (*self._chunk_rows(prefilling, is_paced=num_others > 0 or prefilling[0].yields), True)
        if table is None:
            return [], [], False
        return self._with_drafts(decoding[table]), [], False

    def _is_chunks_turn(self, table: int, *, is_rush: bool) -> bool:
        """Whether a chunk goes before the decode group of `table`, which was served longest ago.

        A chunk comes once in a round of the groups. While more sequences prefill or wait than decode, it
        comes after every group, since the groups are nearly empty then.
        """
        return (
            self._num_microbatches > self._prefill_served
            if is_rush
            else (self._prefill_served < self._decode_served[table])
        )

    def _with_drafts(self, rows: list[Row]) -> list[Row]:
        """Add the drafter's proposals, as far as the table has room."""
        sequences = [row.sequence for row in rows if row.sequence is not None]
        drafted = []
        for row, sequence, draft in zip(rows, sequences, self._drafter.propose(sequences), strict=True):
            room = 0 if sequence.is_careful else self.slots.tables[sequence.table].num_tokens - row.end
            fitting = draft[:room]
            drafted.append(replace(row, token_ids=row.token_ids + fitting, num_drafts=len(fitting)))
        return drafted

    def _runnable(self) -> list[Sequence]:
        """Return the sequences that may step: all running ones, or one suspect when no other is in flight."""
        suspect = next((sequence for sequence in self.running if sequence.is_suspect), None)
        if suspect is None:
            return self.running
        is_alone = all(microbatch.sequences == [suspect] for microbatch in self.in_flight)
        return [suspect] if is_alone else []

    def _decoding_by_table(self, runnable: list[Sequence]) -> dict[int, list[Row]]:
        """Return the ready decode rows of each table that has no decode group in flight."""
        busy = {microbatch.table for microbatch in self.in_flight if not microbatch.is_prefill}
        rows: dict[int, list[Row]] = {}
        for sequence in runnable:
            if sequence.table not in busy and sequence.is_decoding:
                rows.setdefault(sequence.table, []).append(make_row(sequence, 1))
        return rows

    def _chunk_rows(
        self, prefilling: list[Sequence], *, is_paced: bool
    ) -> tuple[list[Row], list[PrefixCopy]]:
        """Return one chunk: the oldest prompts of the oldest one's table, as many as fill it best.

        A prompt that shares a prefix with another row copies that KV and steps only the rest.
        """
        candidates = self._candidates(prefilling)
        budget = self.limits.max_chunk_tokens
        if self.limits.paces_chunks:
            budget = self._pace.budget(budget, is_waited_for=is_paced)
        context = max(len(each.token_ids) - left + min(left, budget) for each, _, left in candidates)
        budget = within_scores(budget, context, self.limits.max_chunk_scores)
        num_rows, width = best_fill([left for _, _, left in candidates], budget)
        rows, copies = [], []
        for sequence, copy, num_left in candidates[:num_rows]:
            if copy is not None:
                copies.append(copy)
                source = self.slots.tables[copy.from_table].slots[copy.from_slot].sequence
                sequence.is_on_trust = source is not None and copy.num_tokens > source.num_proven_tokens
                sequence.num_reused_tokens = sequence.num_stepped_tokens = copy.num_tokens
                sequence.num_scheduled_tokens = sequence.num_cached_tokens = copy.num_tokens
            rows.append(make_row(sequence, min(num_left, width)))
        return rows, copies

    def _candidates(self, prefilling: list[Sequence]) -> list[tuple[Sequence, PrefixCopy | None, int]]:
        """Return the candidates for the next chunk: sequence, its prefix copy, tokens left to step.

        A prompt that shares a prefix with an earlier one in the chunk waits for the next chunk and copies
        then.
        """
        found: list[tuple[Sequence, PrefixCopy | None, int]] = []
        for sequence in prefilling:
            if sequence.table != prefilling[0].table:
                continue
            copy = self._find_copy(sequence)
            num_done = copy.num_tokens if copy else sequence.num_scheduled_tokens
            if not sequence.is_careful and any(
                could_copy(sequence, other, num_done) for other, _, _ in found
            ):
                continue
            found.append((sequence, copy, len(sequence.token_ids) - num_done))
            if len(found) == MAX_CHUNK_ROWS:
                break
        return found

    def _find_copy(self, sequence: Sequence) -> PrefixCopy | None:
        """Return a prefix copy for a prompt that was not stepped yet, if one saves enough tokens."""
        is_new = sequence.num_scheduled_tokens == sequence.num_reused_tokens
        return self.slots.prefix_cache.find_copy(sequence) if is_new and not sequence.is_careful else None

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
            row.sequence.num_scheduled_tokens += row.num_known
            row.sequence.num_stepped_tokens = max(row.sequence.num_stepped_tokens, row.end)
            wants_logits |= row.sequence.num_unscheduled_tokens == 0 or len(row.read_places) > 0
        stepped = {row.sequence for row in rows}
        resizes, clears = self.slots.take_orders(number, [row.slot for row in rows])
        microbatch = Microbatch(
            number=self._num_microbatches,
            table=number,
            rows=arrange(rows, fills_holes=not is_prefill),
            wants_logits=wants_logits,
            is_prefill=is_prefill,
            copies=tuple(copies),
            resizes=resizes,
            clears=clears,
            is_alone=not self.in_flight
            and all(sequence in stepped and not sequence.num_unscheduled_tokens for sequence in self.running),
        )
        self.in_flight.append(microbatch)
        return microbatch
