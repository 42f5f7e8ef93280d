"""From what a watch has found to the events of one stream, from any token on: pure, no files, no clock.

Every index from the first wanted one is told exactly once and in order. Where tokens that the client has
seen are no longer in the log, a reset comes first and then all tokens from 0. Tokens that are in the result
but not in the log (the disk was full) are made up for from the result before its end is told.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from config.errors import ServiceError
from frontdoor.http.errors import GenerationFailed
from spool import Result, TokenRecord


@dataclass(frozen=True)
class Event:
    """One thing that a stream tells; exactly one member is set, none means that there is nothing new."""

    records: tuple[TokenRecord, ...] = ()
    is_reset: bool = False
    result: Result | None = None
    error: ServiceError | None = None

    @property
    def is_news(self) -> bool:
        return bool(self.records or self.is_reset or self.result or self.error)


class Follower:
    """Turns a log that is read from its start into the events from token `start` on."""

    def __init__(self, start: int = 0) -> None:
        self._next_index = start  # of the next token to tell
        self._num_logged = 0
        self._num_characters = 0  # of the text of all logged tokens
        self._is_fresh = True

    def take(
        self, records: Sequence[TokenRecord], *, was_reset: bool = False, result: Result | None = None
    ) -> list[Event]:
        """Return what is new. The first call brings everything that is in the log by then."""
        events = []
        if was_reset:
            self._num_logged = self._num_characters = 0
        self._num_logged += len(records)
        self._num_characters += sum(len(record.text) for record in records)
        known = [*records, *self._missing(result)]
        if was_reset or (self._is_fresh and self._next_index > self._num_logged):
            self._next_index = 0
            events.append(Event(is_reset=True))
        self._is_fresh = False
        untold = tuple(record for record in known if record.index >= self._next_index)
        if untold:
            self._next_index = untold[-1].index + 1
            events.append(Event(records=untold))
        if result is not None:
            failure = None if result.error is None else GenerationFailed(result.error)
            events.append(Event(error=failure) if failure else Event(result=result))
        return events

    def _missing(self, result: Result | None) -> list[TokenRecord]:
        if result is None or result.error is not None:
            return []
        missing = []
        for index in range(self._num_logged, len(result.token_ids)):
            text = result.text[self._num_characters :]
            missing.append(TokenRecord(index, result.token_ids[index], text))
            self._num_characters += len(text)
        self._num_logged += len(missing)
        return missing
