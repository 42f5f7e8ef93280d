"""Runs the batches of the spool, in one front door of all.

    take the lock → look for batches → validate → open lines → submit → collect results → … → publish outputs

A window bounds the requests in the spool, so that MAX_QUEUE_DEPTH and MAX_QUEUE_MB stay for other clients; it
fills up as lines end, and batches share it. When the spool or the ring refuses, all batches pause. Nothing is
only in memory: after a death another front door takes the lock, and goes on from the folders. Knows nothing
of a line's form.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

from msgspec.structs import replace

from config.errors import SOON_SECONDS, ServiceError
from config.run_files import number
from frontdoor.batches.running import RunningBatch
from frontdoor.batches.validation import validate
from frontdoor.http.errors import RingDown
from frontdoor.state import FrontDoor
from spool import CorruptRequest, SpoolUnavailable
from spool.batches import BatchStore, BatchView, LineError

IDLE_SECONDS = 0.5
SWEEP_SECONDS = 60.0
SECONDS_A_DAY = 86_400
WINDOW_SHARE = 2  # of the rows that the ring steps at once: half of the window waits in the queue
QUEUE_SHARE = 2  # the window takes at most this part of the queue's limits
T = TypeVar("T")

log = logging.getLogger(__name__)


class BatchRunner:
    """Runs from `start` to `stop`. `get_front` returns the front door with its present settings."""

    def __init__(self, get_front: Callable[[], FrontDoor]) -> None:
        self._get_front = get_front
        self._store: BatchStore = get_front().batches
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._running: dict[str, RunningBatch] = {}
        self._done: set[str] = set()
        self._resumes_at = self._sweeps_at = -float("inf")
        self._trouble = ""
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin; needs the running event loop."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Stop, and let another front door go on; what runs stays in the spool."""
        assert self._task is not None
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        await asyncio.get_running_loop().run_in_executor(None, self._thread.shutdown)
        self._leave_all()
        self._store.unlock()

    async def _run(self) -> None:
        while True:
            try:
                await self._tick()
            except (SpoolUnavailable, OSError) as error:
                self._pause(error)
            except Exception:  # the boundary of the runner: it reads the folders anew
                log.exception("the batches stopped; they go on from their folders")
                self._leave_all()
                self._resumes_at = time.monotonic() + SOON_SECONDS
            interval = self._get_front().settings.poll_interval
            await asyncio.sleep(min(interval, IDLE_SECONDS) if self._running else IDLE_SECONDS)

    async def _tick(self) -> None:
        """Look at everything once. Raises SpoolUnavailable."""
        if not await self._call(self._store.try_lock):
            return
        front = self._get_front()
        await self._call(self._look, front)
        for running in list(self._running.values()):
            await self._advance(front, running)
        if time.monotonic() >= self._resumes_at:
            try:
                await self._open_lines(front)
                for running in self._running.values():
                    await self._call(running.submit)
                self._trouble = ""
            except ServiceError as error:
                self._pause(error)
        if time.monotonic() >= self._sweeps_at:
            self._sweeps_at = time.monotonic() + SWEEP_SECONDS
            await self._call(self._sweep, front.settings.file_retention_days * SECONDS_A_DAY)

    async def _call(self, call: Callable[..., T], *arguments: Any) -> T:
        """Run what blocks in the runner's own thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, *arguments)

    def _look(self, front: FrontDoor) -> None:
        """Find new batches; begin them, or go on with them. Blocks."""
        store = self._store
        for id in sorted(set(store.names()) - self._running.keys() - self._done):
            try:
                view = store.find(id)
                if view is not None:
                    self._begin(front, view)
            except CorruptRequest as error:
                log.error("cannot run batch %s: %s", id, error)
                self._done.add(id)

    def _begin(self, front: FrontDoor, view: BatchView) -> None:
        """Begin a batch, or go on with it. Blocks. Raises CorruptRequest."""
        store, id, state = self._store, view.batch.id, view.state
        if state.status == "validating":
            state = validate(front, view.batch)
            store.write_state(id, state)
            log.info("batch %s of %d lines is %s", id, state.num_total, state.status)
        if not state.has_ended:
            try:
                self._running[id] = RunningBatch(store, view.batch, state)
                return
            except CorruptRequest as error:
                errors = (LineError("damaged_input", str(error)),)
                store.write_state(id, replace(state, status="failed", errors=errors, ended_unix=time.time()))
                raise
        store.tidy(id)
        self._done.add(id)

    async def _advance(self, front: FrontDoor, running: RunningBatch) -> None:
        """Take in results, and end the batch when its time has come."""
        batch = running.batch
        await self._call(running.collect)
        if not running.is_complete and not running.is_closing:
            is_cancelled = await self._call(self._store.is_cancelled, batch.id)
            if is_cancelled or time.time() > batch.expires_unix:
                await self._call(running.close, "cancelled" if is_cancelled else "expired")
        if running.is_closing and not running.is_complete:
            while running.has_next():  # no more than a window
                await running.open_next(front)
            await self._call(running.end_closing)
        if running.is_complete:
            await self._call(running.finish)
            log.info("batch %s is %s", batch.id, running.state.status)
            del self._running[batch.id]
            self._done.add(batch.id)

    async def _open_lines(self, front: FrontDoor) -> None:
        """Open lines while there is room in the window, of the batch with the fewest open requests first.

        Raises:
            ServiceError: the service refuses them for now.
        """
        failure = front.ring_status.failure()
        if failure is not None:
            raise RingDown(f"the ring is down: {failure}")
        max_requests, max_bytes = self._window(front)
        while True:
            open_batches = self._running.values()
            num_requests = sum(running.num_requests for running in open_batches)
            num_bytes = sum(running.num_bytes for running in open_batches)
            ready = [each for each in open_batches if not each.is_closing and each.has_next()]
            if not ready or num_requests >= max_requests or (num_requests and num_bytes >= max_bytes):
                return
            await min(ready, key=lambda running: running.num_requests).open_next(front)
            await asyncio.sleep(0)  # other clients between two lines

    def _window(self, front: FrontDoor) -> tuple[int, int]:
        """Return the most requests and bytes that the batches may have in the spool."""
        settings = front.settings
        num_tables = settings.microbatches
        if num_tables == "auto":
            num_tables = max(1, int(number(front.ring_status.ring().get("ring_size"))))
        num_rows = int(num_tables) * settings.max_rows_per_microbatch
        max_requests = max(1, min(WINDOW_SHARE * num_rows, settings.max_queue_depth // QUEUE_SHARE))
        return max_requests, settings.max_queue_mb * 2**20 // QUEUE_SHARE

    def _sweep(self, retention_seconds: float) -> None:
        now = time.time()
        num_files = self._store.files.sweep(now, retention_seconds)
        num_batches = self._store.sweep(now, retention_seconds)
        if num_files or num_batches:
            log.info("removed %d files and %d batches (FILE_RETENTION_DAYS)", num_files, num_batches)
        self._done &= set(self._store.names())

    def _pause(self, error: Exception) -> None:
        self._resumes_at = time.monotonic() + SOON_SECONDS
        reason = str(error)
        if self._running and reason != self._trouble:
            log.warning("batches pause: %s", reason)
        self._trouble = reason

    def _leave_all(self) -> None:
        for running in self._running.values():
            running.leave()
        self._running.clear()
