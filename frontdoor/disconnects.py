"""Cancels the requests of clients that disconnected, after a grace time in which they may return.

The spool holds the time of the cancel, so this process may die meanwhile. A client returns by fetching its
request, which revokes the cancel, or by following it. While a client follows a request here,
`keep_followed` revokes cancels by any front door; when the last one leaves, the grace time starts again.
Background requests are never cancelled this way. Knows request ids and the spool; nothing of connections.
"""

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from spool import Spool, SpoolUnavailable

log = logging.getLogger(__name__)


class Disconnects:
    """The requests that clients of this process follow. `grace_seconds` may change at any time."""

    def __init__(self, spool: Spool, *, grace_seconds: float) -> None:
        self._spool = spool
        self.grace_seconds = grace_seconds
        self._num_followers: Counter[str] = Counter()
        self._without_client: set[str] = set()  # followed requests whose own client has left

    def client_left(self, request_id: str, *, may_return: bool = True) -> None:
        """Cancel the request after the grace time, or now where its client cannot return."""
        if self._num_followers[request_id]:
            self._without_client.add(request_id)
        else:
            self._cancel(request_id, self.grace_seconds if may_return else 0.0)

    def client_returned(self, request_id: str) -> None:
        """Revoke the cancel of the request."""
        self._without_client.discard(request_id)
        self._keep(request_id)

    @contextmanager
    def following(self, request_id: str, *, is_new: bool = False) -> Iterator[None]:
        """Prevent a cancel of the request until the block ends. A new request has none to revoke."""
        self._num_followers[request_id] += 1
        if not is_new and self._keep(request_id):
            self._without_client.add(request_id)
        try:
            yield
        finally:
            self._num_followers[request_id] -= 1
            if not self._num_followers[request_id]:
                del self._num_followers[request_id]
                if request_id in self._without_client:
                    self._without_client.discard(request_id)
                    self._cancel(request_id, self.grace_seconds)

    def keep_followed(self) -> None:
        """Revoke pending cancels of requests that clients follow here. Call it regularly."""
        try:
            ending = self._spool.ending_later()
        except SpoolUnavailable as error:
            log.warning("cannot read the pending cancels of requests: %s", error)
            return
        for request_id in ending & self._num_followers.keys():
            self._keep(request_id)
            self._without_client.add(request_id)

    def _keep(self, request_id: str) -> bool:
        try:
            return self._spool.keep(request_id)
        except SpoolUnavailable as error:
            log.warning("request %s may be cancelled although its client has returned: %s", request_id, error)
            return False

    def _cancel(self, request_id: str, after_seconds: float) -> None:
        try:
            if self._spool.cancel(request_id, after_seconds=after_seconds):
                log.info(
                    "request %s is cancelled in %g s: its client disconnected", request_id, after_seconds
                )
        except SpoolUnavailable as error:
            log.warning("cannot cancel request %s of a disconnected client: %s", request_id, error)
