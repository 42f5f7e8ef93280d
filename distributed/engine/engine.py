"""Rank 0's loop: take requests, launch microbatches, wait, receive one.

Knows the ring, its own stage, the scheduler, the request source and the token writer; nothing of HTTP. All
decisions are made here and in the scheduler. One selector waits for the ring, the doorbell and signals. The
loop sends the next microbatch before it decodes and logs the last one's text, so that other stages do not
wait for files."""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Items
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

import mlx.core as mx
import numpy as np

from distributed.backends.keep_warm import WARM_INTERVAL_SECONDS
from distributed.backends.stage import Stage
from distributed.engine.constraints import Constraint, Masks, make_masks
from distributed.engine.request_source import RequestSource
from distributed.engine.sampling import Draws, sample_known
from distributed.engine.scheduler import Scheduler
from distributed.engine.sequence import Drawn, Microbatch, Row, Sequence
from distributed.engine.status import RingStatus
from distributed.engine.token_writer import TokenWriter
from distributed.planning.step import StageStep
from distributed.ring.frame import FLAG_WARM, Frame, Kind, make_step_frame, parse_step
from distributed.ring.ring import MAX_UNREAD_BYTES, Ring, RingLost, clock_us
from distributed.ring.watchdog import Watchdog
from spool.messages import TokenLogprob

logger = logging.getLogger(__name__)

STATUS_SECONDS = 1.0
PING_SECONDS = 5.0
SWEEP_SECONDS = 60.0
BACKLOG_SECONDS = 0.1
MAX_SIGNALS = 64  # a byte each
MAX_READ_ROWS = 64  # of a prompt's logits in memory at once


@dataclass(frozen=True)
class EngineParts:
    """What the loop runs on."""

    ring: Ring
    stage: Stage
    scheduler: Scheduler
    source: RequestSource
    writer: TokenWriter
    status: RingStatus
    watchdog: Watchdog


@dataclass(frozen=True)
class EngineLimits:
    """Limits of the loop."""

    poll_interval_seconds: float
    step_timeout_seconds: float
    shutdown_timeout_seconds: float
    retention_seconds: float
    retention_bytes: int
    keep_warm_seconds: float = 0.0  # after the last step; 0: not at all


@dataclass(frozen=True)
class StepDraws:
    """The draws of one step and its rows: one after a row's last known token, then one after each draft."""

    rows: Items[Row] = ()
    draws: Draws = field(default_factory=Draws)


class Engine:
    """Serves the spool until it is asked to stop."""

    def __init__(
        self, parts: EngineParts, limits: EngineLimits, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Args: limits: may be replaced by another thread; the next turn of the loop uses the new ones."""
        self._ring, self._stage, self._scheduler = parts.ring, parts.stage, parts.scheduler
        self._source, self._writer = parts.source, parts.writer
        self._status, self._watchdog = parts.status, parts.watchdog
        self.limits, self._clock = limits, clock
        # A frame for each microbatch in flight: those sent, oldest first, and at most one not sent yet.
        self._sent: deque[Frame] = deque()
        self._unsent: Frame | None = None
        self._mask_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="masks")
        self._masks: dict[int, Future[dict[Constraint, Masks]]] = {}  # by microbatch
        self._is_pinging = False
        self._takes_requests, self._is_ending = True, False
        self._last_lap = self._last_step = clock()
        self._next_look = self._next_status = self._next_sweep = self._last_step

    def run(self, should_stop: Callable[[], bool], wakeup: int) -> None:
        """Serve until `should_stop`, then finish running requests within the shutdown limit.

        Args:
            wakeup: a descriptor that becomes readable when a signal has arrived.
        """
        self._enter("ready")
        while not should_stop():
            self.step(wakeup)
        self._drain(wakeup)

    def step(self, wakeup: int) -> None:
        """One turn of the loop."""
        self._keep_house()
        self._take()
        self._launch()
        self._wait(wakeup)
        if self._ring.is_readable():
            self._receive()

    def _enter(self, phase: str) -> None:
        self._status.enter(phase)
        self._watchdog.enter(phase, self.limits.step_timeout_seconds)

    def _drain(self, wakeup: int) -> None:
        self._enter("draining")
        self._takes_requests = False
        deadline = self._clock() + self.limits.shutdown_timeout_seconds
        while self._scheduler.has_work and self._clock() < deadline:
            self.step(wakeup)
        if self._scheduler.has_work:
            logger.warning(
                "%d answers stay in the spool and continue at the next start", self._scheduler.num_open
            )
        self._is_ending = True
        while self._scheduler.in_flight:  # log their tokens; nothing may be sent after STOP
            self._receive_next()
        self._publish()
        self._source.close()
        self._ring.send(Frame(Kind.STOP, self._ring.epoch))
        while self._receive_next().kind is not Kind.STOP:
            pass
        self._status.enter("stopped")

    def _take(self) -> None:
        """Read the spool when that is due: claim requests for all free and yielded rows, then cancel."""
        now = self._clock()
        if now < self._next_look:
            return
        self._next_look = now + self.limits.poll_interval_seconds
        self._source.bell.drain()
        self._publish()
        if self._takes_requests:
            num_free = self._scheduler.num_free
            answers = self._source.claim(self._scheduler.num_claimable, num_free)
            for answer in answers:
                self._scheduler.add(answer.sequence)
            if len(answers) >= num_free:  # the queue may hold more than there are rows
                self._next_look = now + min(self.limits.poll_interval_seconds, BACKLOG_SECONDS)
        for answer in self._source.cancelled():
            self._scheduler.finish(answer.sequence)
            self._writer.end(answer, "cancelled")
            self._next_look = now  # a row is free

    def _launch(self) -> None:
        """Send microbatches until enough are in flight or nothing is ready."""
        while self._send_next() and not self._is_ending:
            microbatch = self._scheduler.schedule()
            if microbatch is None:
                return
            for sequence in microbatch.sequences:
                if sequence.is_suspect:
                    self._source.mark_solo(self._writer.answer_of(sequence))
            self._begin_masks(microbatch)
            self._unsent = to_frame(microbatch, self._ring.epoch)

    def _begin_masks(self, microbatch: Microbatch) -> None:
        """Have the masks of its rows with a grammar made while the stages work."""
        orders = []
        for row in microbatch.rows:
            sequence = row.sequence
            if sequence is None or (constraint := self._writer.answer_of(sequence).constraint) is None:
                continue
            if row.wants_tokens:
                drafts = row.token_ids[row.num_known :]
                orders.append(constraint.order(sequence.token_ids, sequence.num_prompt_tokens, drafts))
        if orders:
            self._masks[microbatch.number] = self._mask_thread.submit(make_masks, orders)

    def _send_next(self) -> bool:
        """Send the unsent frame, if there is one; return False if it must wait for earlier frames.

        Frames sent and not yet received may lie unread in a socket buffer. Together they stay within what the
        buffer takes without blocking; a frame larger than that is sent alone.
        """
        if self._unsent is None:
            return True
        num_unread = sum(frame.num_bytes for frame in self._sent)
        if num_unread and num_unread + self._unsent.num_bytes > MAX_UNREAD_BYTES:
            return False
        if not self._sent:
            self._last_lap = self._clock()
        self._status.trace.sent(self._unsent.step)
        self._ring.send(self._unsent)
        self._sent.append(self._unsent)
        self._unsent = None
        return True

    def _wait(self, wakeup: int) -> None:
        """Wait for a frame, the bell or a signal, until something is due; a bell brings new requests."""
        bell = self._source.bell.fileno()
        # POLL_INTERVAL may be a minute; status, pings and the watchdog are due each second.
        due = min(self._next_look, self._next_status)
        ready = self._ring.wait(max(0.0, due - self._clock()), (bell, wakeup))
        if wakeup in ready:
            os.read(wakeup, MAX_SIGNALS)  # else the selector would return at once from now on
        if bell in ready:
            self._next_look = 0.0
            self._take()

    def _receive(self) -> Frame:
        """Receive one frame; run the last stage if it is a step."""
        frame, hidden = self._ring.recv()
        self._last_lap = self._clock()
        self._status.last_lap_unix = time.time()
        if frame.kind is Kind.STEP:
            self._last_step = self._last_lap
            self._finish_step(frame, hidden)
        elif frame.kind is Kind.HELLO:
            self._is_pinging = False
            if frame.flags & FLAG_WARM and (touch := self._stage.runner.touch) is not None:
                touch()
        return frame

    def _receive_next(self) -> Frame:
        self._watchdog.expect(self.limits.step_timeout_seconds, self._status.step)
        while not self._ring.is_readable():
            self._ring.wait(self.limits.step_timeout_seconds)
        return self._receive()

    def _finish_step(self, frame: Frame, hidden: mx.array | None) -> None:
        """Run the last stage, draw, launch the next microbatches; only then publish the tokens."""
        start_us = clock_us()
        microbatch = self._scheduler.in_flight[0]
        if frame.step != microbatch.number:
            raise RingLost(f"step {frame.step} came back where {microbatch.number} was expected")
        self._sent.popleft()
        step, ids = parse_step(frame)
        output = self._stage.launch(step, mx.array(ids) if hidden is None else hidden)
        # A GPU makes head and draws of its layers' results before anything waits for it.
        draws = None if self._stage.runner.greedy is None else self._begin_draws(microbatch, step, output)
        self._publish()
        self._stage.finish(step, output, *(draws.draws.arrays if draws else ()))
        if self._sent and self._source.bell.drain():  # a new prompt goes before the next decode group
            self._next_look = 0.0
            self._take()
        self._read_prompts(microbatch, output)
        draws = draws or self._begin_draws(microbatch, step, output)
        advanced = self._scheduler.postprocess(microbatch, self._take_draws(draws))
        self._credit(microbatch, frame, clock_us() - start_us)
        self._status.trace.finished(microbatch, frame, start_us)
        for advance in advanced:
            if advance.sequence.ended_by is not None or not advance.is_finite:
                self._scheduler.finish(advance.sequence)
        self._launch()
        self._writer.take(advanced)
        # Otherwise the tokens are published while the next step's layers run.
        if not (self._stage.runner.is_async and self._ring.is_readable()):
            self._publish()
        if self._stage.runner.can_build_ahead and self._sent and not self._ring.is_readable():
            self._stage.build_ahead(parse_step(self._sent[0])[0], self._ring.expect_hidden)

    def _begin_draws(self, microbatch: Microbatch, step: StageStep, output: mx.array) -> StepDraws:
        """Begin a draw after the last known token, and after each draft, of every row that wants tokens."""
        rows = [(i, row) for i, row in enumerate(microbatch.rows) if row.wants_tokens]
        making = self._masks.pop(microbatch.number, None)
        if not microbatch.wants_logits or not rows:
            self._stage.rest()
            return StepDraws()
        masks = making.result() if making is not None else {}
        wanted, sampling = [], []
        for i, row in rows:
            assert row.sequence is not None
            answer, drafts = self._writer.answer_of(row.sequence), row.token_ids[row.num_known :]
            own_masks = () if answer.constraint is None else list(masks[answer.constraint])
            wanted += [(i, row.num_known - 1 + ahead) for ahead in range(row.num_drafts + 1)]
            sampling += answer.sampling(drafts, own_masks)
        draws = Draws(self._stage.logits(step, output, wanted), sampling, self._stage.runner.greedy)
        self._stage.runner.submit(*draws.arrays)
        return StepDraws([row for _, row in rows], draws)

    def _take_draws(self, begun: StepDraws) -> dict[Sequence, Drawn]:
        """Return the drawn tokens of the rows that are still wanted."""
        tokens = iter(begun.draws.finish())
        drawn: dict[Sequence, Drawn] = {}
        for row in begun.rows:
            own = list(islice(tokens, row.num_drafts + 1))
            if row.sequence is not None and row.is_wanted:  # publishing may have ended it
                self._writer.answer_of(row.sequence).drawn = own
                drawn[row.sequence] = [None if token is None else token.id for token in own]
        return drawn

    def _read_prompts(self, microbatch: Microbatch, output: mx.array) -> None:
        """Note the logprobs of prompt tokens, in blocks: a whole chunk's logits could take gigabytes."""
        wanted = [
            (i, place - row.offset, place + 1, self._writer.answer_of(row.sequence))
            for i, row in enumerate(microbatch.rows)
            for place in row.read_places
            if row.sequence is not None
        ]
        for start in range(0, len(wanted), MAX_READ_ROWS):
            rows, columns, indexes, answers = zip(*wanted[start : start + MAX_READ_ROWS], strict=True)
            logits = self._stage.runner.logits(output, rows, columns)
            ids = [answer.sequence.token_ids[index] for answer, index in zip(answers, indexes, strict=True)]
            nums = [answer.request.params.prompt_logprobs or 0 for answer in answers]
            tokens = sample_known(logits, ids, nums)
            for answer, index, token in zip(answers, indexes, tokens, strict=True):
                if index == len(answer.prompt_logprobs):  # not read before a preemption
                    answer.prompt_logprobs.append(TokenLogprob(*token))

    def _credit(self, microbatch: Microbatch, frame: Frame, own_busy_us: int) -> None:
        busy_us = [own_busy_us, *(frame.busy_us(rank) for rank in range(1, self._ring.size))]
        self._status.busy.add(busy_us)
        self._scheduler.note_cost(microbatch, busy_us)
        self._status.step = microbatch.number
        running = [sequence for sequence in microbatch.sequences if sequence.is_running]
        for sequence in running:
            self._writer.answer_of(sequence).credit(busy_us, len(running))

    def _publish(self) -> None:
        """Log the new tokens, wake the front doors, finish the sequences that ended."""
        for sequence in self._writer.publish():
            self._scheduler.finish(sequence)

    def _keep_house(self) -> None:
        """Do what is due: the watchdog's limit, the ring check, sweeps, retries, the status."""
        now = self._clock()
        self._watchdog.expect(self.limits.step_timeout_seconds, self._status.step)
        self._check_ring(now)
        if now >= self._next_sweep:
            self._next_sweep = now + SWEEP_SECONDS
            self._writer.sweep(self.limits.retention_seconds, self.limits.retention_bytes)
        if now >= self._next_status:
            self._next_status = now + STATUS_SECONDS
            self._source.retry()
            self._writer.retry()
            self._update_status()

    def _check_ring(self, now: float) -> None:
        """Raise RingLost when a lap takes too long; when idle, send a HELLO round to check the ring.

        While its GPUs are kept awake the rounds follow each other closely.
        """
        if self._scheduler.in_flight or self._is_pinging:
            if now - self._last_lap > self.limits.step_timeout_seconds:
                raise RingLost(
                    f"no frame came back within STEP_TIMEOUT={self.limits.step_timeout_seconds:g} s"
                )
            return
        is_recent = now - self._last_step < self.limits.keep_warm_seconds
        is_warm = is_recent and self._stage.runner.touch is not None
        if now - self._last_lap > (WARM_INTERVAL_SECONDS if is_warm else PING_SECONDS):
            self._last_lap = now
            self._is_pinging = True
            self._ring.send(Frame(Kind.HELLO, self._ring.epoch, flags=FLAG_WARM if is_warm else 0))

    def _update_status(self) -> None:
        status, scheduler = self._status, self._scheduler
        depth = self._source.depth()
        status.queue = {
            "num_waiting": depth.num_waiting + self._source.num_compiling + len(scheduler.waiting),
            "num_running": len(scheduler.running),
            "oldest_wait_s": round(depth.oldest_wait_s, 3),
        }
        status.kv["num_tokens"] = scheduler.slots.num_kv_tokens
        status.kv["num_kept_tokens"] = scheduler.slots.prefix_cache.num_tokens
        num_new = scheduler.num_preemptions - status.kv.get("num_preemptions", 0)
        if num_new:
            logger.info("%d running requests wait again: KV_CACHE_RESERVED_MEMORY_MB is full", num_new)
        status.kv["num_preemptions"] = scheduler.num_preemptions
        status.tokens, status.requests = self._writer.tokens, self._writer.num_ended
        status.owners = self._writer.owners
        status.results = self._writer.results
        status.publish()


def to_frame(microbatch: Microbatch, epoch: int) -> Frame:
    """Return the frame of a microbatch; token ids are padded with 0 on the right."""
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
    return make_step_frame(step, ids, epoch=epoch, number=microbatch.number)
