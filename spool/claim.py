"""Claim: a request that rank 0 works on, and what its name says of earlier attempts."""

from __future__ import annotations

from dataclasses import dataclass

from spool.messages import Request
from spool.names import MAX_SOLO_CRASHES, EntryName


@dataclass(frozen=True)
class Claim:
    """A request that is ours to answer. waited_s is since it was accepted."""

    request: Request
    name: EntryName
    waited_s: float

    @property
    def attempt(self) -> int:
        """Which try this is: counts claims, from 1."""
        return self.name.attempt

    @property
    def is_suspect(self) -> bool:
        """Whether it was active in a life that crashed and made no new token since: it should run alone."""
        return self.name.is_suspect

    @property
    def num_solo_crashes(self) -> int:
        """How many lives in a row crashed while it ran alone, without a new token."""
        return self.name.num_solo_crashes

    @property
    def is_poison(self) -> bool:
        """Whether it has crashed alone so often that it must fail instead of running."""
        return self.name.num_solo_crashes >= MAX_SOLO_CRASHES
