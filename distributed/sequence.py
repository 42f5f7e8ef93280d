"""A sequence: the live state of one request on rank 0. Pure Python; owns its own counts."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from enum import Enum

from distributed.frame import PrefixCopy


class Status(Enum):
    WAITING = "waiting"  # no slot yet
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(eq=False)
class Sequence:
    """Prompt and answer tokens of one request and how far their KV has come.

    Invariant: num_cached_tokens <= num_scheduled_tokens <= len(token_ids). `num_scheduled_tokens` counts
    tokens whose KV is written or on its way round the ring."""

    id: str
    token_ids: list[int]  # prompt, then answer
    num_prompt_tokens: int
    max_tokens: int  # of the answer
    end_token_ids: frozenset[int] = frozenset()
    owner: str = ""
    is_suspect: bool = False  # was running when a ring crashed: steps alone until a new token is logged
    status: Status = Status.WAITING
    table: int = -1
    slot: int = -1
    num_reused_tokens: int = 0  # found in the slot at admission
    num_scheduled_tokens: int = 0
    num_cached_tokens: int = 0

    @property
    def num_answer_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def max_total_tokens(self) -> int:
        return self.num_prompt_tokens + self.max_tokens

    @property
    def num_unscheduled_tokens(self) -> int:
        return len(self.token_ids) - self.num_scheduled_tokens

    @property
    def is_running(self) -> bool:
        return self.status is Status.RUNNING

    @property
    def is_prefilling(self) -> bool:
        """More than one token has no KV yet: a chunk comes next."""
        return self.is_running and self.num_unscheduled_tokens > 1

    @property
    def is_decoding(self) -> bool:
        """Exactly the newest token has no KV and everything before it is back: a decode row."""
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

    The last `num_drafts` tokens are guesses: their KV counts only as far as the draws turn out the same."""

    sequence: Sequence | None
    slot: int
    offset: int
    token_ids: tuple[int, ...]
    num_drafts: int = 0

    @property
    def num_known(self) -> int:
        """Tokens that are no guesses."""
        return len(self.token_ids) - self.num_drafts

    @property
    def wants_tokens(self) -> bool:
        """Whether its last known token is the sequence's newest, so that a token is drawn after it."""
        sequence = self.sequence
        return (
            sequence is not None
            and sequence.is_running
            and self.offset + self.num_known == len(sequence.token_ids)
        )

    def accept(self, drawn: Items[int]) -> tuple[int, ...]:
        """Return the draws that hold: up to and with the first that differs from its guess.

        Args:
            drawn: one token after the last known one, then one after each guess.
        """
        guesses = self.token_ids[self.num_known :]
        num_right = next((i for i, guess in enumerate(guesses) if drawn[i] != guess), len(guesses))
        return tuple(drawn[: num_right + 1])


@dataclass(frozen=True)
class Microbatch:
    """Rows of one table that are stepped together: one prefill chunk or one decode group."""

    number: int
    table: int
    rows: tuple[Row, ...]
    wants_logits: bool
    resets_table: bool = False
    is_prefill: bool = False
    copies: tuple[PrefixCopy, ...] = ()
    is_alone: bool = False  # nothing else was under way or ready when it left
    crowd: tuple[int, int] | None = None  # (groups, rows of all) where only even decode groups were under way

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
    """One row of a KV table: in use by a sequence, or keeping the tokens of a finished one for reuse."""

    sequence: Sequence | None = None
    kept_token_ids: Items[int] = ()
    owner: str = ""
    last_used: int = 0

    @property
    def written_token_ids(self) -> Items[int]:
        """The tokens whose KV is in this row, or on its way into it."""
        if self.sequence is None:
            return self.kept_token_ids
        return self.sequence.token_ids[: self.sequence.num_scheduled_tokens]


@dataclass
class Table:
    """One KV table as rank 0 accounts for it; sizes only grow until it is reset."""

    slots: list[Slot] = field(default_factory=list)
    max_tokens: int = 0
    needs_reset: bool = False

    @property
    def num_running(self) -> int:
        return sum(slot.sequence is not None for slot in self.slots)
