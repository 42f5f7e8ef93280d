"""Clients that went away: their requests are cancelled, after a grace time where they may come back.

A client comes back by fetching its request, which takes the cancellation back for good, or by attaching to
it, which puts it off for as long as somebody is attached, at this front door or at another. Only a request
whose own client left is ever cancelled: one that was asked for in the background is not. Knows request ids
and one call to make; knows nothing of connections.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from frontdoor.attendance import Attendance

LOOK_AGAIN_SECONDS = 0.5


class Leavers:
    """Timers by request id. A process that ends leaves the requests alone: they go on and can be fetched.

    `grace_seconds` may change; it counts for who leaves from then on.
    """

    def __init__(
        self, cancel: Callable[[str], None], *, grace_seconds: float, attendance: Attendance
    ) -> None:
        self._cancel = cancel
        self.grace_seconds = grace_seconds
        self._attendance = attendance
        self._timers: dict[str, asyncio.TimerHandle | None] = {}  # None while somebody is attached
        self._num_attached: Counter[str] = Counter()

    def left(self, request_id: str, *, may_return: bool = True) -> None:
        """Cancel the request when the grace time is over, or now where its client has no way back."""
        self.came_back(request_id)
        grace_seconds = self.grace_seconds if may_return else 0.0
        is_kept = self._num_attached[request_id] > 0
        self._timers[request_id] = None if is_kept else self._start(request_id, grace_seconds)

    def came_back(self, request_id: str) -> None:
        """Forget that its client left."""
        timer = self._timers.pop(request_id, None)
        if timer is not None:
            timer.cancel()

    @contextmanager
    def attached(self, request_id: str) -> Iterator[None]:
        """Keep the request from being cancelled until the block ends."""
        timer = self._timers.get(request_id)
        if timer is not None:
            timer.cancel()
            self._timers[request_id] = None
        self._num_attached[request_id] += 1
        try:
            with self._attendance.attend(request_id):
                yield
        finally:
            self._num_attached[request_id] -= 1
            if not self._num_attached[request_id]:
                del self._num_attached[request_id]
                if request_id in self._timers:
                    self._timers[request_id] = self._start(request_id, self.grace_seconds)

    def stop(self) -> None:
        """Forget everything."""
        for timer in self._timers.values():
            if timer is not None:
                timer.cancel()
        self._timers.clear()
        self._attendance.close()

    def _start(self, request_id: str, grace_seconds: float) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(grace_seconds, self._on_timer, request_id)

    def _on_timer(self, request_id: str) -> None:
        if self._attendance.is_attended(request_id):  # at another front door: nothing tells us when it ends
            grace_seconds = max(self.grace_seconds, LOOK_AGAIN_SECONDS)
            self._timers[request_id] = self._start(request_id, grace_seconds)
            return
        del self._timers[request_id]
        self._cancel(request_id)
