"""Clients that went away: their requests are cancelled, after a grace time where they may come back.

The spool holds the moment of the end, so that it comes whatever becomes of this process. A client comes back
by fetching its request, which takes the end back for good, or by attaching to it: while somebody is attached
here, `look` takes back what any front door has asked for, and the last one who leaves asks for it anew. Only
a request whose own client left is ever cancelled: one that was asked for in the background is not. Knows
request ids and the spool; knows nothing of connections.
"""

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from spool import Spool, SpoolUnavailable

log = logging.getLogger(__name__)


class Disconnects:
    """Who is attached here. `grace_seconds` may change; it counts for who leaves from then on."""

    def __init__(self, spool: Spool, *, grace_seconds: float) -> None:
        self._spool = spool
        self.grace_seconds = grace_seconds
        self._num_attached: Counter[str] = Counter()
        self._left: set[str] = set()  # of those attached here: their own client went away

    def left(self, request_id: str, *, may_return: bool = True) -> None:
        """Cancel the request when the grace time is over, or now where its client has no way back."""
        if self._num_attached[request_id]:
            self._left.add(request_id)
        else:
            self._cancel(request_id, self.grace_seconds if may_return else 0.0)

    def came_back(self, request_id: str) -> None:
        """Forget that its client left."""
        self._left.discard(request_id)
        self._keep(request_id)

    @contextmanager
    def attached(self, request_id: str, *, is_new: bool = False) -> Iterator[None]:
        """Keep the request from being cancelled until the block ends; nobody can have left a new one."""
        self._num_attached[request_id] += 1
        if not is_new and self._keep(request_id):
            self._left.add(request_id)
        try:
            yield
        finally:
            self._num_attached[request_id] -= 1
            if not self._num_attached[request_id]:
                del self._num_attached[request_id]
                if request_id in self._left:
                    self._left.discard(request_id)
                    self._cancel(request_id, self.grace_seconds)

    def look(self) -> None:
        """Take back that a request be cancelled to which somebody is attached here; now and then."""
        try:
            ending = self._spool.ending_later()
        except SpoolUnavailable as error:
            log.warning("cannot look for requests that are about to be cancelled: %s", error)
            return
        for request_id in ending & self._num_attached.keys():
            self._keep(request_id)
            self._left.add(request_id)

    def _keep(self, request_id: str) -> bool:
        try:
            return self._spool.keep(request_id)
        except SpoolUnavailable as error:
            log.warning("request %s may be cancelled, though its client is back: %s", request_id, error)
            return False

    def _cancel(self, request_id: str, after_seconds: float) -> None:
        try:
            if self._spool.cancel(request_id, after_seconds=after_seconds):
                log.info("request %s is cancelled in %g s: its client left", request_id, after_seconds)
        except SpoolUnavailable as error:
            log.warning("request %s, whose client left, cannot be cancelled: %s", request_id, error)
