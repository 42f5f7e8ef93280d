"""Limits what one API key may ask for: requests without a result, and requests accepted in a minute.

The spool knows the requests without a result, so that limit holds across restarts and front doors. The rate
is of this process. A limit is the key's own in API_KEYS_FILE, or the default of the settings. Knows nothing
of bodies.
"""

import asyncio
import math
import time
from collections import Counter, OrderedDict, defaultdict
from collections.abc import AsyncIterator, Callable, Collection
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from itertools import islice

from config import Settings
from frontdoor.http.auth import Keys
from frontdoor.http.errors import InvalidRequest, KeyLimitReached
from frontdoor.queue_estimate import QueueEstimate
from spool import OpenRequests, Spool

WINDOW_SECONDS = 60.0
MAX_IN_FLIGHT, REQUESTS_PER_MINUTE = LIMITS = ("max_in_flight", "requests_per_minute")
RATE_HEADERS = tuple(f"x-ratelimit-{name}-requests" for name in ("limit", "remaining", "reset"))


class RateWindow:
    """The requests of one key that were accepted in the last 60 seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._times: OrderedDict[str, float] = OrderedDict()  # by id, oldest first

    def add(self, ids: Collection[str], limit: int) -> float | None:
        """Count requests, if they are within the limit; else return the seconds until they would be."""
        now = self._clock()
        while self._times and next(iter(self._times.values())) <= now - WINDOW_SECONDS:
            self._times.popitem(last=False)
        num_over = len(self._times) + len(ids) - limit
        if num_over > 0:
            return next(islice(self._times.values(), num_over - 1, None)) + WINDOW_SECONDS - now
        self._times.update(dict.fromkeys(ids, now))
        return None

    def remove(self, ids: Collection[str]) -> None:
        """Forget requests that were not accepted after all."""
        for id in ids:
            self._times.pop(id, None)

    def headers(self, limit: int) -> dict[str, str]:
        """Describe the window as of the last `add`; `reset` is when no request counts any more."""
        newest = next(reversed(self._times.values()), None)
        seconds = 0 if newest is None else math.ceil(newest + WINDOW_SECONDS - self._clock())
        values = (str(limit), str(max(0, limit - len(self._times))), f"{seconds}s")
        return dict(zip(RATE_HEADERS, values, strict=True))


class KeyLimits:
    """Used on the event loop; `workers` look into the spool.

    `num_rejected` counts refused requests by owner and limit.
    """

    def __init__(self, keys: Keys, spool: Spool, queue_estimate: QueueEstimate, workers: Executor) -> None:
        self._keys, self._queue_estimate, self._workers = keys, queue_estimate, workers
        self._open = OpenRequests(spool)
        self._windows: defaultdict[str, RateWindow] = defaultdict(RateWindow)  # by owner
        self.num_rejected: Counter[tuple[str, str]] = Counter()

    @asynccontextmanager
    async def admitting(
        self, owner: str, ids: Collection[str], settings: Settings, headers: dict[str, str]
    ) -> AsyncIterator[None]:
        """Let the block submit the requests of one body. A block that fails uses nothing of the limits.

        Args:
            headers: of the answer; the state of the rate is added, where it is limited.

        Raises:
            KeyLimitReached: the requests would be over a limit.
            InvalidRequest: they are more than a limit allows at any time.
            SpoolUnavailable: the disk refused the look.
        """
        max_open, rate = self._limits(owner, settings)
        for name, limit in zip(LIMITS, (max_open, rate), strict=True):
            if 0 < limit < len(ids):
                raise InvalidRequest(f"the body asks for {len(ids)} answers; this key has {name}={limit}")
        window = self._windows[owner]
        try:
            if rate and (seconds := window.add(ids, rate)) is not None:
                raise KeyLimitReached(REQUESTS_PER_MINUTE, rate, math.ceil(seconds))
            if max_open:
                await self._enter(owner, ids, max_open)
            yield
        except BaseException as error:
            if isinstance(error, KeyLimitReached):
                self.num_rejected[owner, error.limit] += len(ids)
            window.remove(ids)
            raise
        finally:
            self._open.leave(ids)
            if rate:
                headers.update(window.headers(rate))

    def _limits(self, owner: str, settings: Settings) -> tuple[int, int]:
        """Return max_in_flight and requests_per_minute of a key; 0 is no limit."""
        key = self._keys.find(owner)
        if key is None:
            return 0, 0
        max_open, rate = key.max_in_flight, key.requests_per_minute
        return (
            settings.key_max_in_flight if max_open is None else max_open,
            settings.key_requests_per_minute if rate is None else rate,
        )

    async def _enter(self, owner: str, ids: Collection[str], max_open: int) -> None:
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(self._workers, self._open.enter, owner, ids, max_open)
        if found is not None:
            num_open, num_all = found
            num_ended = (num_open + len(ids) - max_open) * num_all / num_open  # of all keys until then
            raise KeyLimitReached(MAX_IN_FLIGHT, max_open, self._queue_estimate.seconds_until(num_ended))
