"""Waits for tokens and results: one doorbell for the process, one watch for each waiting client.

When the bell rings, and at every poll interval, the subscriptions read the files of the watched requests and
wake each watch with news. Without watches they do nothing. Knows files; nothing of HTTP.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from spool import (
    Doorbell,
    LogCut,
    Result,
    Spool,
    SpoolError,
    SpoolUnavailable,
    TokenLogReader,
    TokenRecord,
    make_door_name,
)

log = logging.getLogger(__name__)


class WatchGroup:
    """The watches of one client, which wake it together."""

    def __init__(self) -> None:
        self.watches: list[Watch] = []
        self.is_client_gone = False
        self._news = asyncio.Event()

    @property
    def has_failed(self) -> bool:
        return any(watch.has_failed for watch in self.watches)

    @property
    def is_complete(self) -> bool:
        """Whether every watch has its result, or one has failed."""
        return self.has_failed or all(watch.result is not None for watch in self.watches)

    async def news(self, timeout_seconds: float) -> bool:
        """Wait for news; False when the time is over."""
        if not self._news.is_set():
            try:
                async with asyncio.timeout(timeout_seconds):
                    await self._news.wait()
            except TimeoutError:
                return False
        self._news.clear()
        return True

    def client_gone(self) -> None:
        """Note that the client disconnected, and wake the waiter."""
        self.is_client_gone = True
        self.wake()

    def wake(self) -> None:
        self._news.set()


class Watch:
    """The news of one request for one client. `result` is final; `records` are tokens not taken yet."""

    def __init__(self, request_id: str, group: WatchGroup, log_reader: TokenLogReader | None) -> None:
        self.request_id = request_id
        self.log_reader = log_reader
        self.records: list[TokenRecord] = []
        self.result: Result | None = None
        self.failure: SpoolError | None = None
        self.is_reset = False
        self.is_unreadable = False
        self.wake = group.wake
        group.watches.append(self)

    @property
    def has_failed(self) -> bool:
        """Whether it ended without an answer."""
        return self.failure is not None or (self.result is not None and self.result.error is not None)

    def take_records(self) -> list[TokenRecord]:
        """Return the new tokens since the last call."""
        taken, self.records = self.records, []
        return taken

    def take_reset(self) -> bool:
        """Return whether the log started over since the last call."""
        was_reset, self.is_reset = self.is_reset, False
        return was_reset


class Subscriptions:
    """The process's doorbell and all its watches. `poll_interval_seconds` may change at any time."""

    def __init__(self, spool: Spool, *, poll_interval_seconds: float) -> None:
        self._spool = spool
        self.poll_interval_seconds = poll_interval_seconds
        self._watches: set[Watch] = set()
        self._rescan: asyncio.TimerHandle | None = None
        self._bell: Doorbell | None = None

    def start(self, on_rescan: Callable[[], None] = lambda: None) -> None:
        """Begin to listen, in the running event loop; call `on_rescan` at each rescan."""
        self._on_rescan = on_rescan
        self._bell = self._spool.listen(make_door_name())
        asyncio.get_running_loop().add_reader(self._bell.fileno(), self._on_bell)

    def stop(self) -> None:
        """Stop listening; open watches get no more news."""
        if self._bell is not None:
            asyncio.get_running_loop().remove_reader(self._bell.fileno())
            self._bell.close()
            self._bell = None
        self._stop_rescan()

    @property
    def is_rescanning(self) -> bool:
        return self._rescan is not None

    @contextmanager
    def watch(self, request_id: str, group: WatchGroup, *, with_tokens: bool) -> Iterator[Watch]:
        """Follow one request for a group's client; existing tokens and results count as news."""
        watch = Watch(request_id, group, self._spool.open_log(request_id) if with_tokens else None)
        self._watches.add(watch)
        self._read_news(watch)
        self._schedule_rescan()
        try:
            yield watch
        finally:
            self._watches.discard(watch)
            if not self._watches:
                self._stop_rescan()

    def _on_bell(self) -> None:
        assert self._bell is not None
        self._bell.drain()
        self._read_all_news()

    def _read_all_news(self) -> None:
        for watch in self._watches:
            self._read_news(watch)

    def _read_news(self, watch: Watch) -> None:
        if watch.result is not None or watch.failure is not None:
            return
        try:
            # The result first: the log has all tokens before the result exists.
            result = self._spool.read_result(watch.request_id)
            if watch.log_reader is not None:
                watch.records += watch.log_reader.read_new()
            watch.result = result
            watch.is_unreadable = False
        except LogCut:
            watch.records.clear()
            watch.is_reset = True
            watch.wake()
            self._read_news(watch)
        except SpoolUnavailable as error:  # no descriptors, or a failing disk: the next rescan retries
            if not watch.is_unreadable:
                log.warning("cannot read the answer of request %s: %s; retrying", watch.request_id, error)
            watch.is_unreadable = True
        except SpoolError as error:
            log.warning("cannot read the answer of request %s: %s", watch.request_id, error)
            watch.failure = error
        if watch.result is not None or watch.records or watch.failure is not None:
            watch.wake()

    def _schedule_rescan(self) -> None:
        if self._rescan is None and self._watches and self._bell is not None:
            loop = asyncio.get_running_loop()
            self._rescan = loop.call_later(self.poll_interval_seconds, self._rescan_now)

    def _stop_rescan(self) -> None:
        if self._rescan is not None:
            self._rescan.cancel()
            self._rescan = None

    def _rescan_now(self) -> None:
        self._rescan = None
        self._on_rescan()
        self._read_all_news()
        self._schedule_rescan()
