"""Shared by tests of the scheduler: sequences, a simulated ring, and the KV as stages write it."""

from __future__ import annotations

from collections.abc import Sequence as Items

from distributed.engine.drafting import Drafter
from distributed.engine.scheduler import Scheduler, SchedulerLimits
from distributed.engine.sequence import Microbatch, Sequence, Status
from distributed.engine.slots import SlotLimits
from distributed.planning.step import Resize


def make_scheduler(
    *,
    num_tables: int = 2,
    max_rows: int = 8,
    max_kv_tokens: int = 100_000,
    kept: int = 4096,
    chunk: int = 64,
    drafter: Drafter | None = None,
    max_gathered: int = 0,
    row_tokens: int = 0,
    window: int = 0,
) -> Scheduler:
    slots = SlotLimits(
        num_tables=num_tables,
        max_rows=max_rows,
        max_kv_tokens=max_kv_tokens,
        max_kept_tokens=kept,
        row_tokens=row_tokens,
        window=window,
    )
    limits = SchedulerLimits(
        max_in_flight=num_tables, max_chunk_tokens=chunk, slots=slots, max_gathered=max_gathered
    )
    return Scheduler(limits, drafter)


def make_sequence(name: str, num_prompt: int = 10, max_tokens: int = 4, first: int = 100) -> Sequence:
    return Sequence(name, list(range(first, first + num_prompt)), num_prompt, max_tokens)


def take(scheduler: Scheduler) -> Microbatch:
    """Schedule a microbatch, which there must be."""
    microbatch = scheduler.schedule()
    assert microbatch is not None
    return microbatch


def give_back(scheduler: Scheduler, microbatch: Microbatch, token: int = 7) -> list[Sequence]:
    """Simulate a lap: every row that wants tokens gets `token`; finish the sequences that ended."""
    sampled = (
        {row.sequence: [token] for row in microbatch.rows if row.sequence is not None and row.wants_tokens}
        if microbatch.wants_logits
        else {}
    )
    advanced = [advance.sequence for advance in scheduler.postprocess(microbatch, sampled)]
    for sequence in advanced:
        if sequence.ended_by:
            scheduler.finish(sequence)
    return advanced


def run_all(scheduler: Scheduler) -> list[Microbatch]:
    log = []
    for _ in range(10_000):
        while microbatch := scheduler.schedule():
            log.append(microbatch)
        if not scheduler.in_flight:
            return log
        give_back(scheduler, scheduler.in_flight[0])
    raise AssertionError("the scheduler does not come to an end")


def cancel(scheduler: Scheduler, sequences: list[Sequence], indexes: set[int]) -> None:
    for index, sequence in enumerate(sequences):
        if index in indexes and sequence.status is not Status.FINISHED:
            scheduler.finish(sequence)


class NoDrafts:
    """A drafter without drafts, for others to begin from."""

    def propose(self, sequences: Items[Sequence]) -> list[tuple[int, ...]]:
        return [() for _ in sequences]

    def learn(self, sequence: Sequence, num_drafts: int, num_right: int) -> None:
        pass

    def note_cost(self, num_tokens: int, busy_us: float) -> None:
        pass

    def forget(self, sequence: Sequence) -> None:
        pass


class WrittenKV:
    """The token ids whose KV is in each row of each table, as stages write it frame by frame."""

    def __init__(self) -> None:
        self.rows: dict[tuple[int, int], list[int]] = {}
        self.written: dict[tuple[str, int], int] = {}
        self.shapes: dict[int, tuple[int, int]] = {}

    @property
    def num_tokens(self) -> int:
        """Tokens that the stages have memory for."""
        return sum(rows * tokens for rows, tokens in self.shapes.values())

    def _resize(self, order: Resize) -> None:
        kept = order.slots or range(order.num_rows)
        moved = {
            (order.table, new): self.rows[order.table, old][: order.num_tokens]
            for new, old in enumerate(kept)
            if (order.table, old) in self.rows
        }
        self.rows = {place: ids for place, ids in self.rows.items() if place[0] != order.table} | moved
        self.shapes[order.table] = (order.num_rows, order.num_tokens)

    def _grow(self, microbatch: Microbatch) -> None:
        """Check that the table is large enough: rank 0 sends each resize before."""
        rows, tokens = self.shapes[microbatch.table]
        assert max(row.slot for row in microbatch.rows) < rows
        assert max(row.end for row in microbatch.rows) <= tokens

    def step(self, microbatch: Microbatch) -> None:
        """Simulate a frame; check that its rows see only their own tokens."""
        table = microbatch.table
        for resize in microbatch.resizes:
            self._resize(resize)
        self._grow(microbatch)
        for copy in microbatch.copies:
            source = self.rows[copy.from_table, copy.from_slot]
            assert len(source) >= copy.num_tokens > 0
            assert copy.to_slot < self.shapes[table][0]
            self.rows[table, copy.to_slot] = source[: copy.num_tokens]
        for row in microbatch.rows:
            if row.sequence is not None:
                ids = self.rows.setdefault((table, row.slot), [])
                life = (row.sequence.id, row.num_preemptions)
                assert row.offset == self.written.get(life, row.sequence.num_reused_tokens)
                assert ids[: row.offset] == row.sequence.token_ids[: row.offset]
                ids[row.offset :] = row.token_ids
                self.written[life] = row.end
