"""Estimates a request's wait from its place in the queue and the recent rate of finished requests.

The rate comes from the totals in rank 0's status, sampled at every question and every accepted request, over
intervals with work only. An unknown rate is None, never a guess. Knows the status and the spool; nothing of
HTTP.
"""

import math
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from config.errors import SOON_SECONDS
from config.run_files import mapping, number
from frontdoor.ring_status import RingStatus
from spool import Spool

WINDOW_SECONDS = 60.0
MAX_INTERVAL_SECONDS = 5.0  # between two samples; in a longer one the ring may have been idle
MAX_LISTING_AGE_SECONDS = 1.0
MAX_RETRY_SECONDS = 120
RETRY_SHARE = 0.1  # of the queue: refused clients retry together, so one free place is not enough


@dataclass(frozen=True)
class Place:
    """A request's place in the queue; position 0 is next, the estimate is None while the rate is unknown."""

    position: int
    estimated_wait_s: float | None

    def __str__(self) -> str:
        about = "" if self.estimated_wait_s is None else f", about {math.ceil(self.estimated_wait_s)} s"
        return f"position {self.position}{about}"


@dataclass(frozen=True)
class _Sample:
    at: float
    ring_life: object
    num_ended: float
    has_work: bool


class RateMeter:
    """Measures finished requests in a second of work, over the last minute."""

    def __init__(self) -> None:
        self._last: _Sample | None = None
        self._intervals: deque[tuple[float, float, float]] = deque()  # (end, seconds, requests)

    def sample(self, ring: Mapping[str, Any]) -> None:
        """Sample rank 0's status; the same status twice counts once."""
        queue, totals = mapping(ring.get("queue")), mapping(ring.get("totals"))
        sample = _Sample(
            at=number(ring.get("updated_unix")),
            ring_life=(ring.get("epoch"), ring.get("started_unix")),  # its totals begin at 0
            num_ended=sum(map(number, mapping(totals.get("requests")).values())),
            has_work=number(queue.get("num_running")) + number(queue.get("num_waiting")) > 0,
        )
        last, self._last = self._last, sample
        if last is None or last.ring_life != sample.ring_life:
            return
        seconds, num_ended = sample.at - last.at, sample.num_ended - last.num_ended
        if 0 < seconds <= MAX_INTERVAL_SECONDS and num_ended >= 0 and (last.has_work or sample.has_work):
            self._intervals.append((sample.at, seconds, num_ended))
        while self._intervals and sample.at - self._intervals[0][0] > WINDOW_SECONDS:
            self._intervals.popleft()

    def requests_per_second(self) -> float | None:
        """Return the rate; None while it is unknown or no request ended."""
        seconds = sum(interval[1] for interval in self._intervals)
        num_ended = sum(interval[2] for interval in self._intervals)
        return num_ended / seconds if seconds and num_ended else None


class QueueEstimate:
    """Estimates for waiting and for refused clients."""

    def __init__(self, spool: Spool, ring_status: RingStatus) -> None:
        self._spool = spool
        self._ring_status = ring_status
        self._meter = RateMeter()
        self._places: dict[str, int] = {}
        self._listed_at = -math.inf

    def update(self) -> None:
        """Update the rate; cheap."""
        self._meter.sample(self._ring_status.ring())

    def place(self, request_id: str, *, is_exact: bool = False) -> Place | None:
        """Return a waiting request's place, up to a second old unless `is_exact`; None: it does not wait.

        Raises: SpoolUnavailable.
        """
        self.update()
        now = time.monotonic()
        if is_exact or now - self._listed_at > MAX_LISTING_AGE_SECONDS:
            self._places = {found: position for position, found in enumerate(self._spool.waiting_ids())}
            self._listed_at = now
        position = self._places.get(request_id)
        if position is None:
            return None
        rate = self._meter.requests_per_second()
        return Place(position, None if rate is None else round((position + 1) / rate, 1))

    def retry_after_seconds(self) -> int:
        """Return when the queue will have room again for a share of the refused clients."""
        num_waiting = number(mapping(self._ring_status.ring().get("queue")).get("num_waiting"))
        return self.seconds_until(max(1.0, num_waiting * RETRY_SHARE))

    def seconds_until(self, num_ended: float) -> int:
        """Return when so many more requests will have ended, for Retry-After."""
        self.update()
        rate = self._meter.requests_per_second()
        return SOON_SECONDS if rate is None else math.ceil(min(num_ended / rate, MAX_RETRY_SECONDS))
