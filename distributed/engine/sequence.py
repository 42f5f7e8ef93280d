"""A sequence: the live state of one request on rank 0. Pure Python; owns its own counts."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from enum import Enum

from distributed.planning.step import Clear, PrefixCopy, Resize

# Token ids; None: the logits of that draw are not finite.
Drawn = Items[int | None]


class Status(Enum):
    WAITING = "waiting"  # no slot yet
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(eq=False)
class Sequence:
    """Prompt and answer tokens of one request, and how much of their KV is written.

    Invariant: num_proven_tokens <= num_cached_tokens <= num_scheduled_tokens <= len(token_ids).
    `num_scheduled_tokens` counts tokens whose KV is written or in flight."""

    id: str
    token_ids: list[int]  # prompt, then answer
    num_prompt_tokens: int
    max_tokens: int  # of the answer
    end_token_ids: frozenset[int] = frozenset()
    owner: str = ""
    is_suspect: bool = False  # was running when a ring crashed: steps alone until a new token is logged
    yields: bool = False  # of the last priority: gives its row to those that do not yield
    status: Status = Status.WAITING
    table: int = -1
    slot: int = -1
    num_reused_tokens: int = 0  # found in the slot at admission
    num_scheduled_tokens: int = 0
    num_cached_tokens: int = 0
    num_stepped_tokens: int = 0  # its row may be written up to here, rejected drafts included
    num_proven_tokens: int = 0  # a draw proved that the KV up to here is finite
    num_preemptions: int = 0
    is_on_trust: bool = False  # its prefix was copied from KV that is not proven finite
    is_careful: bool = False  # takes no drafts and no copies any more
    reads_prompt: bool = False  # the logits of its whole prompt are wanted, so no KV of it is reused
    snapshots: tuple[int, ...] = ()  # at so many tokens its states are copied; in rising order

    @property
    def num_answer_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def max_total_tokens(self) -> int:
        return self.num_prompt_tokens + self.max_tokens

    @property
    def num_unscheduled_tokens(self) -> int:
        return len(self.token_ids) - self.num_scheduled_tokens

    def begin_at(self, num_tokens: int) -> None:
        """Start with KV of the first `num_tokens` tokens in its slot, proven finite."""
        self.num_reused_tokens = self.num_scheduled_tokens = self.num_cached_tokens = num_tokens
        self.num_stepped_tokens = self.num_proven_tokens = num_tokens
        self.is_on_trust = False

    def stop_after(self, num_tokens: int) -> int:
        """Return where a chunk that begins at `num_tokens` ends at the latest."""
        return next((place for place in self.snapshots if place > num_tokens), len(self.token_ids))

    @property
    def is_running(self) -> bool:
        return self.status is Status.RUNNING

    @property
    def can_yield(self) -> bool:
        """Whether it may be put back for another; a suspect is marked in the spool as running alone."""
        return self.is_running and self.yields and not self.is_suspect

    @property
    def is_prefilling(self) -> bool:
        """More than one token has no KV yet: a chunk comes next."""
        return self.is_running and self.num_unscheduled_tokens > 1

    @property
    def is_decoding(self) -> bool:
        """Only the newest token has no KV, and nothing of it is in flight: a decode row."""
        return (
            self.is_running
            and self.num_unscheduled_tokens == 1
            and self.num_cached_tokens == self.num_scheduled_tokens
        )

    def extend(self, token_ids: Items[int]) -> tuple[int, ...]:
        """Append answer tokens up to the first that ends the answer; return those appended."""
        for count, token_id in enumerate(token_ids, start=1):
            self.token_ids.append(token_id)
            if self.ended_by is not None:
                return tuple(token_ids[:count])
        return tuple(token_ids)

    @property
    def ended_by(self) -> str | None:
        """Return "stop" or "length" if the tokens so far end the answer, else None."""
        if self.num_answer_tokens and self.token_ids[-1] in self.end_token_ids:
            return "stop"
        return "length" if self.num_answer_tokens >= self.max_tokens else None


@dataclass(frozen=True)
class Row:
    """One row of a microbatch; a hole of the table has no sequence and no tokens.

    The last `num_drafts` tokens are drafts: their KV counts only as far as the draws accept them."""

    sequence: Sequence | None
    slot: int
    offset: int
    token_ids: tuple[int, ...]
    num_drafts: int = 0
    num_preemptions: int = 0  # of the sequence when the row was made

    @property
    def end(self) -> int:
        """The end of the KV that it writes."""
        return self.offset + len(self.token_ids)

    @property
    def is_wanted(self) -> bool:
        """Whether its sequence still has the slot that the row was made for."""
        sequence = self.sequence
        return (
            sequence is not None and sequence.is_running and sequence.num_preemptions == self.num_preemptions
        )

    @property
    def num_known(self) -> int:
        """Tokens that are no drafts."""
        return len(self.token_ids) - self.num_drafts

    @property
    def wants_tokens(self) -> bool:
        """Whether its last known token is the sequence's newest, so that a draw follows it."""
        sequence = self.sequence
        return (
            sequence is not None
            and self.is_wanted
            and self.offset + self.num_known == len(sequence.token_ids)
        )

    @property
    def read_places(self) -> range:
        """Places of the prompt whose logits are wanted, for the logprob of the prompt token after each."""
        sequence = self.sequence
        if sequence is None or not sequence.reads_prompt or not self.is_wanted:
            return range(0)
        return range(self.offset, min(self.end, sequence.num_prompt_tokens - 1))

    def accept(self, drawn: Drawn) -> Drawn:
        """Return the draws up to and including the first that differs from its draft.

        Args:
            drawn: one token after the last known one, then one after each draft; None: not finite.
        """
        drafts = self.token_ids[self.num_known :]
        num_right = next((i for i, draft in enumerate(drafts) if drawn[i] != draft), len(drafts))
        return drawn[: num_right + 1]


def make_row(sequence: Sequence, num_tokens: int) -> Row:
    """Return a row of a sequence's next known tokens."""
    start = sequence.num_scheduled_tokens
    token_ids = tuple(sequence.token_ids[start : start + num_tokens])
    return Row(sequence, sequence.slot, start, token_ids, num_preemptions=sequence.num_preemptions)


def arrange(rows: Items[Row], *, fills_holes: bool) -> tuple[Row, ...]:
    """Sort rows by slot; fill gaps with empty rows, so that stages use their table in place.

    Where more than half would be holes, none are filled, and stages gather the rows.
    """
    known = {row.slot: row for row in sorted(rows, key=lambda row: row.slot)}
    first, last = min(known), max(known)
    if not fills_holes or last - first + 1 > 2 * len(rows):
        return tuple(known.values())
    return tuple(known.get(slot) or Row(None, slot, 0, ()) for slot in range(first, last + 1))


@dataclass(frozen=True)
class Advance:
    """A sequence and its new tokens, in order; none only where `is_finite` is False."""

    sequence: Sequence
    token_ids: tuple[int, ...]
    is_finite: bool = True  # False: the logits of the next token are not finite


@dataclass(frozen=True)
class Microbatch:
    """Rows of one table that are stepped together: one prefill chunk or one decode group."""

    number: int
    table: int
    rows: tuple[Row, ...]
    wants_logits: bool
    is_prefill: bool = False
    copies: tuple[PrefixCopy, ...] = ()
    resizes: tuple[Resize, ...] = ()
    clears: tuple[Clear, ...] = ()
    is_alone: bool = False  # nothing else was in flight or ready when it was made

    @property
    def num_tokens(self) -> int:
        """Columns: the longest row's tokens."""
        return max(len(row.token_ids) for row in self.rows)

    @property
    def sequences(self) -> list[Sequence]:
        """The sequences of its real rows, in row order."""
        return [row.sequence for row in self.rows if row.sequence is not None]


@dataclass
class Slot:
    """One row of a KV table: used by a sequence, or keeping the tokens of a finished one for reuse.

    `dirty`: the tokens whose KV may not be finite; it is cleared before the row is stepped again. What is
    kept may be a copy, proven finite as far as the sequence `copied_from` is, and for more than one chat."""

    sequence: Sequence | None = None
    kept_token_ids: Items[int] = ()
    owner: str = ""
    last_used: int = 0
    dirty: range = range(0)
    copied_from: Sequence | None = None
    num_copied: int = 0  # tokens, also after what is kept was dropped
    is_shared: bool = False

    def is_proven(self, num_tokens: int) -> bool:
        """Whether the KV of its first tokens is proven finite."""
        prover = self.sequence or self.copied_from
        return prover is None or num_tokens <= prover.num_proven_tokens

    @property
    def written_token_ids(self) -> Items[int]:
        """The tokens whose KV is in this row or in flight."""
        if self.sequence is None:
            return self.kept_token_ids
        return self.sequence.token_ids[: self.sequence.num_scheduled_tokens]

    def forget_copy(self) -> None:
        """Note that a copy's KV may not be finite beyond what its source proves; its place is wanted."""
        if self.copied_from is not None:
            self.soil(self.copied_from.num_proven_tokens, self.num_copied)
        self.copied_from = None

    def soil(self, start: int, end: int) -> None:
        """Note that these tokens' KV may not be finite."""
        if start < end:
            dirty = self.dirty or range(start, end)
            self.dirty = range(min(start, dirty.start), max(end, dirty.stop))


@dataclass
class Table:
    """One KV table as rank 0 accounts for it: the size that Resize gives it on all stages, and its slots."""

    slots: list[Slot] = field(default_factory=list)
    num_rows: int = 0
    num_tokens: int = 0

    @property
    def running(self) -> list[Sequence]:
        return [slot.sequence for slot in self.slots if slot.sequence is not None]

    @property
    def num_running(self) -> int:
        return sum(slot.sequence is not None for slot in self.slots)
