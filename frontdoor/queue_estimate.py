"""How long a request will wait: its place in the queue, and how fast requests have been ending lately.

The rate comes from the totals in rank 0's status, looked at whenever somebody asks or is accepted, and only
over stretches in which there was work: nothing runs while nobody asks. Unknown is None, never a guess. Knows
the status and the spool; nothing of HTTP.
"""

import math
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from config.errors import SOON_SECONDS
from frontdoor.ring_status import RingStatus, mapping, number
from spool import Spool

WINDOW_SECONDS = 60.0
MAX_STRETCH_SECONDS = 5.0  # between two looks; in a longer one the ring may have been idle
MAX_LISTING_AGE_SECONDS = 1.0
MAX_RETRY_SECONDS = 120
RETRY_SHARE = 0.1  # of the queue: all who were refused come back together, so one free place is not enough


@dataclass(frozen=True)
class Place:
    """Where a request waits; position 0 is next, the estimate is None while no rate is known."""

    position: int
    estimated_wait_s: float | None

    def __str__(self) -> str:
        about = "" if self.estimated_wait_s is None else f", about {math.ceil(self.estimated_wait_s)} s"
        return f"position {self.position}{about}"


@dataclass(frozen=True)
class _Look:
    at: float
    life: object
    num_ended: float
    has_work: bool


class DrainMeter:
    """Requests that end in a second of work, over the last minute."""

    def __init__(self) -> None:
        self._last: _Look | None = None
        self._stretches: deque[tuple[float, float, float]] = deque()  # (end, seconds, requests)

    def look(self, ring: Mapping[str, Any]) -> None:
        """Take in rank 0's status; the same one twice counts once."""
        queue, totals = mapping(ring.get("queue")), mapping(ring.get("totals"))
        look = _Look(
            at=number(ring.get("updated_unix")),
            life=(ring.get("epoch"), ring.get("started_unix")),  # its totals begin at 0
            num_ended=sum(map(number, mapping(totals.get("requests")).values())),
            has_work=number(queue.get("num_running")) + number(queue.get("num_waiting")) > 0,
        )
        last, self._last = self._last, look
        if last is None or last.life != look.life:
            return
        seconds, num_ended = look.at - last.at, look.num_ended - last.num_ended
        if 0 < seconds <= MAX_STRETCH_SECONDS and num_ended >= 0 and (last.has_work or look.has_work):
            self._stretches.append((look.at, seconds, num_ended))
        while self._stretches and look.at - self._stretches[0][0] > WINDOW_SECONDS:
            self._stretches.popleft()

    def requests_per_second(self) -> float | None:
        """Return the rate; None while it is unknown or nothing ended."""
        seconds = sum(stretch[1] for stretch in self._stretches)
        num_ended = sum(stretch[2] for stretch in self._stretches)
        return num_ended / seconds if seconds and num_ended else None


class QueueEstimate:
    """The queue as those who wait in it want to know it."""

    def __init__(self, spool: Spool, ring_status: RingStatus) -> None:
        self._spool = spool
        self._ring_status = ring_status
        self._meter = DrainMeter()
        self._places: dict[str, int] = {}
        self._listed_at = -math.inf

    def look(self) -> None:
        """Keep the rate up to date; cheap."""
        self._meter.look(self._ring_status.ring())

    def place(self, request_id: str, *, is_exact: bool = False) -> Place | None:
        """Return where a request waits, None when it does not; a second old unless it must be exact.

        Raises: SpoolUnavailable.
        """
        self.look()
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
        """Return when there will be room again for a good part of those who are refused now."""
        self.look()
        rate = self._meter.requests_per_second()
        if rate is None:
            return SOON_SECONDS
        num_waiting = number(mapping(self._ring_status.ring().get("queue")).get("num_waiting"))
        return math.ceil(min(max(1.0, num_waiting * RETRY_SHARE) / rate, MAX_RETRY_SECONDS))
