"""Clients that went away: their requests are cancelled after a grace time, in which they may come back.

Knows request ids and one call to make; knows nothing of connections.
"""

import asyncio
from collections.abc import Callable


class Leavers:
    """Timers by request id. A process that ends leaves the requests alone: they go on and can be fetched."""

    def __init__(self, cancel: Callable[[str], None], *, grace_seconds: float) -> None:
        self._cancel = cancel
        self._grace_seconds = grace_seconds
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def left(self, request_id: str) -> None:
        """Cancel the request when the grace time is over."""
        self.came_back(request_id)
        loop = asyncio.get_running_loop()
        self._timers[request_id] = loop.call_later(self._grace_seconds, self._on_timer, request_id)

    def came_back(self, request_id: str) -> None:
        """Forget that its client left."""
        timer = self._timers.pop(request_id, None)
        if timer is not None:
            timer.cancel()

    def stop(self) -> None:
        """Forget everything."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def _on_timer(self, request_id: str) -> None:
        del self._timers[request_id]
        self._cancel(request_id)
