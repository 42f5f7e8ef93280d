"""Claim: a request that rank 0 works on, with the earlier attempts that its file's name counts."""

from __future__ import annotations

from dataclasses import dataclass

from spool.messages import Request
from spool.names import MAX_SOLO_CRASHES, EntryName


@dataclass(frozen=True)
class Claim:
    """A request that this owner must answer. waited_s counts from its acceptance."""

    request: Request
    name: EntryName
    waited_s: float

    @property
    def attempt(self) -> int:
        """The number of this attempt, from 1."""
        return self.name.attempt

    @property
    def is_suspect(self) -> bool:
        """Whether the ring crashed while it was active and it has no new token since: it should run alone."""
        return self.name.is_suspect

    @property
    def num_solo_crashes(self) -> int:
        """How often in a row the ring crashed while it ran alone, without a new token."""
        return self.name.num_solo_crashes

    @property
    def is_poison(self) -> bool:
        """Whether the ring crashed so often while it ran alone that it must fail instead of running."""
        return self.name.num_solo_crashes >= MAX_SOLO_CRASHES
