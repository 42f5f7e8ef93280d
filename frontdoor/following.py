"""Turns the news of a watch into the events of one stream, from any token on. Pure: no files, no clock.

A stream has every index from its first one exactly once, in order. Where the log lost tokens that the client
has, a reset comes first, and then all tokens from 0. Tokens that are missing in the log (the disk was full)
come from the result, before the end.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from config.errors import ServiceError
from frontdoor.http.errors import GenerationFailed
from spool import Result, TokenRecord


@dataclass(frozen=True)
class Event:
    """One event of a stream. At most one member is set; an event without one means silence."""

    records: tuple[TokenRecord, ...] = ()
    is_reset: bool = False
    result: Result | None = None
    error: ServiceError | None = None

    @property
    def is_news(self) -> bool:
        return bool(self.records or self.is_reset or self.result or self.error)


class Follower:
    """Turns a log, read from its start, into the events from token `start` on."""

    def __init__(self, start: int = 0) -> None:
        self._next_index = start  # of the next token to send
        self._num_logged = 0
        self._num_characters = 0  # of the text of all logged tokens
        self._is_fresh = True

    def take(
        self, records: Sequence[TokenRecord], *, was_reset: bool = False, result: Result | None = None
    ) -> list[Event]:
        """Return the new events. The first call has all tokens that are in the log by then."""
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
        unsent = tuple(record for record in known if record.index >= self._next_index)
        if unsent:
            self._next_index = unsent[-1].index + 1
            events.append(Event(records=unsent))
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
