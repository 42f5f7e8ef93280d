"""One batch in progress: which of its lines have ended, which are open, and which come next.

Everything is read from the batch's folder and the spool when it is loaded, so any front door can go on with
it. A request that the spool knows already is not submitted again; one that it lost is. A line has ended when
it is in the journal. All methods but `open_next` block: the runner calls them in its own thread.
"""

import logging
import time
from array import array
from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from config.errors import ServiceError
from frontdoor.batches.open_line import OpenLine, answer_line, close_line, open_line, refuse_line
from frontdoor.http.errors import internal_error
from frontdoor.state import FrontDoor
from spool import CorruptRequest, Request, Result, SpoolError
from spool.batches import Batch, BatchLine, BatchState, BatchStore, Ended, line_request_id, scan_lines

TOO_MANY_REQUESTS = 429
SAVE_SECONDS = 1.0
CLOSING_SECONDS = 10.0  # for requests that run to end after their batch was cancelled
LOST_SECONDS = 10.0
CHUNK_LINES = 1000

log = logging.getLogger(__name__)


def is_retried(error: ServiceError) -> bool:
    """Whether a line must wait, because the service refuses it for now."""
    return error.status >= 500 or error.status == TOO_MANY_REQUESTS


class RunningBatch:
    """One batch; only the front door that holds the lock has it."""

    def __init__(self, store: BatchStore, batch: Batch, state: BatchState) -> None:
        """Read the batch's folder. Raises SpoolUnavailable, and CorruptRequest where the input is damaged."""
        self.batch, self.state = batch, state
        self._store, self._spool = store, store.spool
        self._numbers, self._offsets, self._sizes = array("Q"), array("Q"), array("Q")
        for raw in scan_lines(self._spool.fs, store.input(batch.id), 1 << 30):
            self._numbers.append(raw.number)
            self._offsets.append(raw.offset)
            self._sizes.append(raw.num_bytes)
        if len(self._numbers) != state.num_total:
            raise CorruptRequest(f"the input has {len(self._numbers)} lines instead of {state.num_total}")
        self._known = self._find_known()
        self._journal = store.open_journal(batch.id)
        self._next = 0  # of the lists above
        self._open: dict[int, OpenLine] = {}
        self._unwritten: list[Ended] = []
        self._saved_at = self._looked_at = time.monotonic()
        self._closes_at: float | None = None
        self.num_requests = self.num_bytes = 0  # of open lines

    @property
    def is_complete(self) -> bool:
        """Whether every line has ended."""
        return len(self._journal.ended) >= len(self._numbers)

    @property
    def is_closing(self) -> bool:
        return self.state.closing is not None

    def has_next(self) -> bool:
        """Whether there is a line to open; a batch that closes opens only lines that the spool knows already,
        because they may have an answer.
        """
        while self._next < len(self._numbers):
            number = self._numbers[self._next]
            is_known = line_request_id(self.batch.id, number) in self._known
            if number not in self._journal.ended and (is_known or not self.is_closing):
                return True
            self._next += 1
        return False

    async def open_next(self, front: FrontDoor) -> None:
        """Open the next line, or end it with an error.

        Raises:
            ServiceError: the service refuses it for now; the line stays the next one.
        """
        number, line = self._numbers[self._next], self._read_line(self._next)
        try:
            opened = await open_line(front, self.batch, number, line)
        except ServiceError as error:
            if is_retried(error):
                raise
            self._unwritten.append(refuse_line(self.batch, number, line.custom_id, error))
        except Exception:  # the boundary of one line: the others go on
            log.exception("cannot run line %d of %s", number, self.batch.id)
            self._unwritten.append(refuse_line(self.batch, number, line.custom_id, internal_error()))
        else:
            opened.unsubmitted.extend(each for each in opened.requests if each.id not in self._known)
            self._open[number] = opened
            self.num_requests += len(opened.requests)
            self.num_bytes += opened.size
        self._next += 1

    def submit(self) -> None:
        """Submit the requests of open lines that are not in the spool yet.

        Raises:
            SpoolError: the spool refuses for now; the rest stays unsubmitted.
        """
        for line in list(self._open.values()):
            while line.unsubmitted and not self.is_closing:
                request = line.unsubmitted[0]
                try:
                    self._spool.submit(request)
                except SpoolError as error:
                    if is_retried(error):
                        raise
                    self._end(line, refuse_line(self.batch, line.number, line.custom_id, error))
                    break
                log.info("request %s accepted", request.label)
                line.unsubmitted.pop(0)

    def collect(self) -> None:
        """Take in the results that exist. Raises SpoolUnavailable."""
        for line in list(self._open.values()):
            results, failure = self._read_results(line)
            if failure is not None:
                self._end(line, refuse_line(self.batch, line.number, line.custom_id, failure))
            elif self.is_closing and (line.unsubmitted or any(_is_cancelled(each) for each in results)):
                self._end(line, self._close_line(line.number, line.custom_id))
            elif len(results) == len(line.requests) or any(each.error is not None for each in results):
                self._end(line, answer_line(self.batch, line, results))
        self._write()
        self._save_counts()
        if time.monotonic() - self._looked_at > LOST_SECONDS:
            self._looked_at = time.monotonic()
            self._look_for_lost()

    def close(self, status: str) -> None:
        """Begin to end the batch before all its lines have run. Raises SpoolUnavailable."""
        self._write_state(replace(self._count(), closing=status))
        self._cancel_open()

    def end_closing(self) -> None:
        """End the lines that will have no answer, once those that ran have ended. Raises SpoolUnavailable."""
        if self._closes_at is None:
            self._closes_at = time.monotonic() + CLOSING_SECONDS
            self._cancel_open()  # those of an earlier front door, too
        if self._open and time.monotonic() < self._closes_at:
            return
        for line in list(self._open.values()):
            self._end(line, self._close_line(line.number, line.custom_id))
        self._write()
        for place, number in enumerate(self._numbers):
            if number not in self._journal.ended:
                self._unwritten.append(self._close_line(number, self._read_line(place).custom_id))
            if len(self._unwritten) >= CHUNK_LINES:
                self._write()
        self._write()

    def finish(self) -> None:
        """Publish the outputs and the last status. Raises SpoolUnavailable; repeat the call."""
        if self.state.finalizing_unix is None:
            self._write_state(replace(self._count(), status="finalizing", finalizing_unix=time.time()))
        ids = self._store.publish_outputs(self.batch, self._journal)
        ended = replace(
            self._count(),
            status=self.state.closing or "completed",
            ended_unix=time.time(),
            output_file_id=ids.get(False),
            error_file_id=ids.get(True),
        )
        self._write_state(ended)
        self.leave()
        self._store.tidy(self.batch.id)

    def leave(self) -> None:
        """Let another front door go on with the batch."""
        self._journal.close()

    def _find_known(self) -> set[str]:
        """Return the ids of requests that are in the spool; none where no line of this batch has begun."""
        known = self._spool.known_ids()
        has_begun = any(line_request_id(self.batch.id, number) in known for number in self._numbers)
        return known if has_begun else set()

    def _read_line(self, place: int) -> BatchLine:
        path = self._store.input(self.batch.id)
        text = self._spool.fs.read_part(path, self._offsets[place], self._sizes[place])
        try:
            return BatchLine.from_json(text)
        except msgspec.MsgspecError:  # damaged since its check: its body will be refused
            return BatchLine("", "POST", self.batch.endpoint, msgspec.Raw(b"null"))

    def _read_results(self, line: OpenLine) -> tuple[list[Result], ServiceError | None]:
        """Return the results of a line that exist; or why one cannot be read."""
        results = []
        try:
            for request in line.requests:
                result = self._spool.read_result(request.id)
                if result is not None:
                    results.append(result)
        except CorruptRequest as error:
            return [], error
        return results, None

    def _write(self) -> None:
        """Journal what has ended. Raises SpoolUnavailable; then it is written at the next call."""
        self._journal.append(self._unwritten)
        self._unwritten.clear()

    def _end(self, line: OpenLine, entry: Ended) -> None:
        """End a line; its other requests have no reader any more."""
        self._unwritten.append(entry)
        del self._open[line.number]
        self.num_requests -= len(line.requests)
        self.num_bytes -= line.size
        if len(line.requests) > 1 and entry.is_error:
            self._cancel(line.requests)

    def _cancel_open(self) -> None:
        for line in reversed(self._open.values()):  # those that wait first, or they would begin meanwhile
            self._cancel(line.requests)

    def _cancel(self, requests: Sequence[Request]) -> None:
        for request in requests:
            self._spool.cancel(request.id)

    def _close_line(self, number: int, custom_id: str) -> Ended:
        assert self.state.closing is not None
        return close_line(self.batch, number, custom_id, self.state.closing)

    def _look_for_lost(self) -> None:
        """Submit again what is neither in the queue nor answered: its result was swept, or somebody
        deleted it.
        """
        living = {*self._spool.waiting_ids(), *self._spool.active_ids()}
        for line in self._open.values():
            waiting = {request.id for request in line.unsubmitted}
            for request in line.requests:
                if request.id in living or request.id in waiting or self._spool.state(request.id):
                    continue
                log.warning("request %s of a batch is gone; it runs again", request.label)
                line.unsubmitted.append(request)

    def _count(self) -> BatchState:
        num_failed = self._journal.num_failed
        num_completed = len(self._journal.ended) - num_failed
        return replace(self.state, num_completed=num_completed, num_failed=num_failed)

    def _save_counts(self) -> None:
        counted = self._count()
        if counted != self.state and time.monotonic() - self._saved_at >= SAVE_SECONDS:
            self._saved_at = time.monotonic()
            self._store.write_counts(self.batch.id, counted.num_completed, counted.num_failed)
            self.state = counted

    def _write_state(self, state: BatchState) -> None:
        self._store.write_state(self.batch.id, state)
        self.state = state


def _is_cancelled(result: Result) -> bool:
    return result.finish_reason == "cancelled"
