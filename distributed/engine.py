"""Rank 0's loop: schedule, send, wait, receive, sample, log.

Knows the ring, its own stage, the scheduler and the intake; nothing of HTTP. It is the only place that
decides anything. One selector waits for the ring, the doorbell and signals. The next microbatch is on its way
before the last one's text is made and logged, so that other stages do not wait for files."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import mlx.core as mx
import numpy as np

from config import Settings
from distributed.answers import Answer
from distributed.frame import (
    NUM_INLINE_INTS,
    Frame,
    Kind,
    StageStep,
    make_step_frame,
    num_lap_ints,
    parse_step,
)
from distributed.intake import CannotRun, Intake
from distributed.lifeline import Lifeline
from distributed.ring import MAX_UNREAD_BYTES, Ring, RingLost, clock_us
from distributed.ring_status import RingStatus
from distributed.sampling import sample
from distributed.scheduler import Advance, Drawn, Scheduler
from distributed.sequence import Microbatch
from distributed.stage import Stage

logger = logging.getLogger(__name__)

STATUS_SECONDS = 1.0
PING_SECONDS = 5.0
SWEEP_SECONDS = 60.0


@dataclass(frozen=True)
class EngineLimits:
    """Limits of the loop; `max_frame_bytes` is the largest frame that rank 0 ever sends."""

    max_frame_bytes: int
    poll_interval_seconds: float
    step_timeout_seconds: float
    shutdown_timeout_seconds: float
    retention_seconds: float
    retention_bytes: int


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
        self._num_unread_bytes = 0
        self._unread_bytes: dict[int, int] = {}
        self._sent_us: dict[int, int] = {}
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
            self._answer_bell(takes_requests)
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

    def _answer_bell(self, takes_requests: bool) -> None:
        """Claim what the rings named; where they named nothing, look at the spool at once."""
        hints = self._intake.bell.hear()
        answers = None
        if takes_requests:
            self._publish()
            answers = self._intake.claim_hinted(hints, self._scheduler.num_free)
        if answers is None:
            self._next_scan = 0.0
        else:
            self._add(answers)

    def _add(self, answers: Sequence[Answer]) -> None:
        """Let new answers be scheduled, or end those that no table can ever hold."""
        for answer in answers:
            if self._scheduler.can_ever_fit(answer.sequence):
                self._scheduler.add(answer.sequence)
            else:
                self._intake.fail(answer, _does_not_fit(answer))

    def _scan(self, takes_requests: bool) -> None:
        """Look at the spool: as many requests as the tables have rows, then cancellations, which can wait."""
        self._publish()
        if takes_requests:
            self._add(self._intake.claim(self._scheduler.num_free))
        for answer in self._intake.cancelled():
            self._scheduler.finish(answer.sequence)
            self._intake.end(answer, "cancelled")
            self._next_scan = 0.0  # there is room for another

    def _launch(self) -> None:
        """Send microbatches until enough are in flight or nothing is ready."""
        while self._has_credit() and not self._is_ending:
            microbatch = self._scheduler.schedule()
            if microbatch is None:
                return
            for sequence in microbatch.sequences:
                if sequence.is_suspect:
                    self._intake.mark_solo(sequence)
            frame = _to_frame(microbatch, self._ring.epoch)
            self._unread_bytes[microbatch.number] = frame.num_bytes
            self._num_unread_bytes += frame.num_bytes
            if len(self._scheduler.in_flight) == 1:
                self._last_lap = time.monotonic()
            self._status.trace.sent(microbatch.number)
            self._sent_us[microbatch.number] = clock_us()
            self._ring.send(frame)

    def _has_credit(self) -> bool:
        """Whether the largest frame may leave: one always may, more only as far as nobody can block."""
        if not self._scheduler.in_flight:
            return True
        return self._num_unread_bytes + self._limits.max_frame_bytes <= MAX_UNREAD_BYTES

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
        self._num_unread_bytes -= self._unread_bytes.pop(microbatch.number)
        step, ids = parse_step(frame)
        self._begin_next()
        output = self._stage.run(step, mx.array(ids) if hidden is None else hidden, self._publish)
        tokens = self._sample(microbatch, step, output)
        advanced = self._scheduler.postprocess(microbatch, tokens)
        self._credit(microbatch, frame, clock_us() - start_us)
        self._status.trace.finished(microbatch, frame, start_us)
        for advance in advanced:
            if advance.sequence.ended_by is not None:
                self._scheduler.finish(advance.sequence)
        self._launch()
        self._unpublished = advanced
        # The next step's layers leave this thread free, and the ring need not wait for files.
        if not (self._stage.works_aside and self._ring.is_readable()):
            self._publish()

    def _begin_next(self) -> None:
        """Let the next frame come in while this one's layers run; its size is known where a step is next."""
        if len(self._scheduler.in_flight) > 1 and not self._num_pings:
            following = self._scheduler.in_flight[1]
            if num_lap_ints(len(following.rows), len(following.copies)) <= NUM_INLINE_INTS:
                self._ring.begin_recv((len(following.rows), following.num_tokens))

    def _sample(self, microbatch: Microbatch, step: StageStep, output: mx.array) -> Drawn:
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

    def _credit(self, microbatch: Microbatch, frame: Frame, own_busy_us: int) -> None:
        busy_us = [own_busy_us, *(frame.busy_us(rank) for rank in range(1, self._ring.size))]
        self._status.busy.add(busy_us)
        lap_us = clock_us() - self._sent_us.pop(microbatch.number)
        self._scheduler.note_cost(microbatch, busy_us, lap_us)
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
            (answer, advance.token_ids) for answer, advance in zip(answers, advanced, strict=True)
        )
        self._intake.ring_doors()
        for answer in answers:
            reason = answer.finish_reason
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
        status.tokens, status.requests = self._intake.tokens, self._intake.num_ended
        status.results = self._intake.results
        status.publish()


def _to_frame(microbatch: Microbatch, epoch: int) -> Frame:
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
        resets_table=microbatch.resets_table,
        copies=microbatch.copies,
        is_alone=microbatch.is_alone,
    )
    return make_step_frame(
        step, ids, epoch=epoch, number=microbatch.number, microbatch=microbatch.number % 64
    )


def _does_not_fit(answer: Answer) -> CannotRun:
    return CannotRun(
        "context_length_exceeded",
        f"{answer.sequence.max_total_tokens} tokens of KV do not fit into KV_CACHE_RESERVED_MEMORY_MB",
    )
