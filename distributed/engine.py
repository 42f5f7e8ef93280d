"""Rank 0's loop: schedule, send, wait, receive, sample, log.

Knows the ring, its own stage, the scheduler and the intake; nothing of HTTP. It is the only place that
decides anything. One selector waits for the ring, the doorbell and signals. The next microbatch is on its way
before the last one's text is made and logged, so that other stages do not wait for files."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice

import mlx.core as mx
import numpy as np

from config import Settings
from distributed.frame import NUM_INLINE_INTS, Frame, Kind, StageStep, make_step_frame, parse_step
from distributed.intake import CannotRun, Intake
from distributed.lifeline import Lifeline
from distributed.ring import MAX_UNREAD_BYTES, Ring, RingLost, clock_us
from distributed.ring_status import RingStatus
from distributed.sampling import sample
from distributed.scheduler import Scheduler
from distributed.sequence import Advance, Drawn, Microbatch, Sequence
from distributed.stage import Stage

logger = logging.getLogger(__name__)

_NOT_FINITE = CannotRun(
    "non_finite",
    "the model's numbers overflowed for this prompt (its logits are not finite); other requests go on",
    500,
)
STATUS_SECONDS = 1.0
PING_SECONDS = 5.0
SWEEP_SECONDS = 60.0


@dataclass(frozen=True)
class EngineLimits:
    """Limits of the loop."""

    poll_interval_seconds: float
    step_timeout_seconds: float
    shutdown_timeout_seconds: float
    retention_seconds: float
    retention_bytes: int


@dataclass
class Lap:
    """A microbatch's frame, from its making to its return; `sent_us` is 0 while it waits for credit."""

    frame: Frame
    sent_us: int = 0


class Engine:
    """Serves the spool until it is told to stop."""

    def __init__(
        self,
        ring: Ring,
        stage: Stage,
        scheduler: Scheduler,
        intake: Intake,
        status: RingStatus,
        lifeline: Lifeline,
        limits: EngineLimits,
    ) -> None:
        self._ring, self._stage, self._scheduler, self._intake = ring, stage, scheduler, intake
        self._status, self._lifeline, self._limits = status, lifeline, limits
        self._laps: deque[Lap] = deque()  # one for each microbatch in flight, oldest first
        self._num_pings = 0
        self._unpublished: list[Advance] = []
        self._is_ending = False
        self._last_lap = self._next_scan = self._next_status = self._next_ping = self._next_sweep = (
            time.monotonic()
        )

    def run(self, should_stop: Callable[[], bool], wakeup: int) -> None:
        """Serve until `should_stop`, then finish what runs as far as the shutdown limit goes.

        Args:
            wakeup: a descriptor that becomes readable when a signal has arrived.
        """
        self._status.enter("ready")
        self._lifeline.enter("ready", self._limits.step_timeout_seconds)
        while not should_stop():
            self.step(wakeup, takes_requests=True)
        self._drain(wakeup)

    def follow(self, settings: Settings) -> None:
        """Take live settings over; called on another thread, seen at the next turn of the loop."""
        self._limits = replace(
            self._limits,
            poll_interval_seconds=settings.poll_interval,
            retention_seconds=settings.result_retention_hours * 3600,
            retention_bytes=settings.result_retention_mb * 2**20,
        )

    def step(self, wakeup: int, *, takes_requests: bool) -> None:
        """Take in, launch, wait, receive: one turn of the loop."""
        now = time.monotonic()
        self._lifeline.expect(self._limits.step_timeout_seconds, self._status.step)
        if now >= self._next_scan:
            self._next_scan = now + self._limits.poll_interval_seconds
            self._scan(takes_requests)
        self._launch()
        self._tick(now)
        bell = self._intake.bell.fileno()
        # POLL_INTERVAL may be a minute; status, pings and the watchdog's limit may not wait for it.
        due = min(self._next_scan, self._next_status)
        ready = self._ring.wait(max(0.0, due - now), (bell, wakeup))
        if bell in ready:
            self._intake.bell.drain()
            self._scan(takes_requests)
        if self._ring.is_readable():
            self._receive()

    def _drain(self, wakeup: int) -> None:
        self._status.enter("draining")
        self._lifeline.enter("draining", self._limits.step_timeout_seconds)
        deadline = time.monotonic() + self._limits.shutdown_timeout_seconds
        while self._scheduler.has_work and time.monotonic() < deadline:
            self.step(wakeup, takes_requests=False)
        if self._scheduler.has_work:
            logger.warning(
                "%d answers stay in the spool and go on at the next start", self._scheduler.num_open
            )
        self._is_ending = True
        while self._scheduler.in_flight:  # their tokens are logged, and nothing is sent after STOP
            self._lifeline.expect(self._limits.step_timeout_seconds, self._status.step)
            self._receive_frame()
        self._publish()
        self._intake.close()
        self._ring.send(Frame(Kind.STOP, self._ring.epoch))
        while self._receive_frame().kind is not Kind.STOP:
            pass
        self._status.enter("stopped")

    def _scan(self, takes_requests: bool) -> None:
        """Look at the spool: as many requests as the tables have rows, then cancellations, which can wait."""
        self._publish()
        if takes_requests:
            for answer in self._intake.claim(self._scheduler.num_free):
                self._scheduler.add(answer.sequence)
        for answer in self._intake.cancelled():
            self._scheduler.finish(answer.sequence)
            self._intake.end(answer, "cancelled")
            self._next_scan = 0.0  # there is room for another

    def _launch(self) -> None:
        """Send microbatches until enough are in flight or nothing is ready."""
        while self._send_next() and not self._is_ending:
            microbatch = self._scheduler.schedule()
            if microbatch is None:
                return
            for sequence in microbatch.sequences:
                if sequence.is_suspect:
                    self._intake.mark_solo(sequence)
            self._laps.append(Lap(to_frame(microbatch, self._ring.epoch)))

    def _send_next(self) -> bool:
        """Send the frame that waits, if there is one; False: it goes on waiting until others are back.

        What was sent and is not back may lie unread in a socket, which has to take it without blocking; a
        frame that is larger than that goes alone.
        """
        if not self._laps or self._laps[-1].sent_us:
            return True
        waiting = self._laps[-1]
        num_unread = sum(lap.frame.num_bytes for lap in self._laps if lap.sent_us)
        if num_unread and num_unread + waiting.frame.num_bytes > MAX_UNREAD_BYTES:
            return False
        if len(self._laps) == 1:
            self._last_lap = time.monotonic()
        self._status.trace.sent(waiting.frame.step)
        waiting.sent_us = clock_us()
        self._ring.send(waiting.frame)
        return True

    def _receive_frame(self) -> Frame:
        """Receive one frame and, if it is a step, run it through the last stage."""
        while not self._ring.is_readable():
            self._ring.wait(self._limits.step_timeout_seconds)
        return self._receive()

    def _receive(self) -> Frame:
        frame, hidden = self._ring.recv()
        self._last_lap = time.monotonic()
        self._status.last_lap_unix = time.time()
        if frame.kind is Kind.STEP:
            self._finish_step(frame, hidden)
        elif frame.kind is Kind.HELLO:
            self._num_pings -= 1
        return frame

    def _finish_step(self, frame: Frame, hidden: mx.array | None) -> None:
        start_us = clock_us()
        microbatch = self._scheduler.in_flight[0]
        if frame.step != microbatch.number:
            raise RingLost(f"step {frame.step} came back where {microbatch.number} was expected")
        sent_us = self._laps.popleft().sent_us
        step, ids = parse_step(frame)
        self._begin_next()
        output = self._stage.run(step, mx.array(ids) if hidden is None else hidden, self._publish)
        tokens = self._sample(microbatch, step, output)
        advanced = self._scheduler.postprocess(microbatch, tokens)
        self._credit(microbatch, frame, clock_us() - start_us, sent_us)
        self._status.trace.finished(microbatch, frame, start_us)
        for advance in advanced:
            if advance.sequence.ended_by is not None or not advance.is_finite:
                self._scheduler.finish(advance.sequence)
        self._launch()
        self._unpublished = advanced
        # The next step's layers leave this thread free, and the ring need not wait for files.
        if not (self._stage.works_aside and self._ring.is_readable()):
            self._publish()

    def _begin_next(self) -> None:
        """Let the next frame come in while this one's layers run; its size is known where a step is next."""
        if self._laps and not self._num_pings:
            following = self._laps[0].frame
            if following.num_head_ints <= NUM_INLINE_INTS:
                self._ring.begin_recv((following.num_rows, following.num_tokens))

    def _sample(self, microbatch: Microbatch, step: StageStep, output: mx.array) -> dict[Sequence, Drawn]:
        """Draw a token after the last known token, and after each guess, of every row that wants one."""
        rows = [(i, row) for i, row in enumerate(microbatch.rows) if row.wants_tokens]
        if not microbatch.wants_logits or not rows:
            self._stage.rest()
            return {}
        wanted, sampling = [], []
        for i, row in rows:
            assert row.sequence is not None
            answer = self._intake.answer_of(row.sequence)
            for ahead in range(row.num_drafts + 1):
                wanted.append((i, row.num_known - 1 + ahead))
                sampling.append(answer.sampling(ahead))
        tokens = iter(sample(self._stage.logits(step, output, wanted), sampling))
        return {
            row.sequence: list(islice(tokens, row.num_drafts + 1))
            for _, row in rows
            if row.sequence is not None
        }

    def _credit(self, microbatch: Microbatch, frame: Frame, own_busy_us: int, sent_us: int) -> None:
        busy_us = [own_busy_us, *(frame.busy_us(rank) for rank in range(1, self._ring.size))]
        self._status.busy.add(busy_us)
        self._scheduler.note_cost(microbatch, busy_us, clock_us() - sent_us)
        self._status.step = microbatch.number
        running = [sequence for sequence in microbatch.sequences if sequence.is_running]
        for sequence in running:
            self._intake.answer_of(sequence).credit(busy_us, len(running))

    def _publish(self) -> None:
        """Log the new tokens, end what is at its end, wake the front doors."""
        advanced, self._unpublished = self._unpublished, []
        if not advanced:
            return
        answers = [self._intake.answer_of(advance.sequence) for advance in advanced]
        self._intake.log_tokens(
            (answer, advance.token_ids)
            for answer, advance in zip(answers, advanced, strict=True)
            if advance.token_ids
        )
        self._intake.ring_doors()
        for answer, advance in zip(answers, advanced, strict=True):
            reason = answer.finish_reason
            if reason is None and not advance.is_finite:
                self._intake.fail(answer, _NOT_FINITE)
            if reason is not None:
                if answer.sequence.is_running:  # a stop string, seen only in the text
                    self._scheduler.finish(answer.sequence)
                self._intake.end(answer, reason)

    def _tick(self, now: float) -> None:
        """Publish status; when idle, prove by a lap that the ring is whole; give up on a lost lap."""
        if self._scheduler.in_flight or self._num_pings:
            if now - self._last_lap > self._limits.step_timeout_seconds:
                raise RingLost(f"no frame came round in {self._limits.step_timeout_seconds:g} s")
        elif now >= self._next_ping and now - self._last_lap > PING_SECONDS:
            self._next_ping = now + PING_SECONDS
            self._last_lap = now
            self._num_pings += 1
            self._ring.send(Frame(Kind.HELLO, self._ring.epoch))
        if now >= self._next_sweep:
            self._next_sweep = now + SWEEP_SECONDS
            self._intake.sweep(self._limits.retention_seconds, self._limits.retention_bytes)
        if now >= self._next_status:
            self._next_status = now + STATUS_SECONDS
            self._intake.retry()
            self._update_status()

    def _update_status(self) -> None:
        status, scheduler = self._status, self._scheduler
        depth = self._intake.depth()
        status.queue = {
            "num_waiting": depth.num_waiting + len(scheduler.waiting),
            "num_running": len(scheduler.running),
            "oldest_wait_s": round(depth.oldest_wait_s, 3),
        }
        status.kv["num_tokens"] = scheduler.slots.num_kv_tokens
        status.kv["num_kept_tokens"] = scheduler.slots.num_kept_tokens
        num_new = scheduler.num_preemptions - status.kv.get("num_preemptions", 0)
        if num_new:
            logger.info(
                "%d running requests wait again: KV_CACHE_RESERVED_MEMORY_MB has no more room", num_new
            )
        status.kv["num_preemptions"] = scheduler.num_preemptions
        status.tokens, status.requests = self._intake.tokens, self._intake.num_ended
        status.results = self._intake.results
        status.publish()


def to_frame(microbatch: Microbatch, epoch: int) -> Frame:
    rows, num_tokens = microbatch.rows, microbatch.num_tokens
    ids = np.zeros((len(rows), num_tokens), np.int32)
    for i, row in enumerate(rows):
        ids[i, : len(row.token_ids)] = row.token_ids
    step = StageStep(
        table=microbatch.table,
        slots=tuple(row.slot for row in rows),
        offsets=tuple(row.offset for row in rows),
        counts=tuple(len(row.token_ids) for row in rows),
        num_tokens=num_tokens,
        wants_logits=microbatch.wants_logits,
        copies=microbatch.copies,
        resizes=microbatch.resizes,
        clears=microbatch.clears,
        is_alone=microbatch.is_alone,
    )
    return make_step_frame(
        step, ids, epoch=epoch, number=microbatch.number, microbatch=microbatch.number % 64
    )
