"""A rank behind rank 0 from start to end, and its loop: receive a frame, run the layers, pass it on.

Knows no prompts, no tokenizer, no HTTP and no settings files; what it needs came with HELLO. It imports none
of that either: ranks start sooner.
"""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx

from config import Settings
from distributed.backends.choose import choose_backend
from distributed.backends.cpu.threads import ProductThreads
from distributed.backends.stage import Stage
from distributed.joining import ROOT, Launch, join_ring, load_own_stage, receive
from distributed.planning.layer_plan import weights_hash
from distributed.planning.stage_files import SUMS_NAME, mark_weights
from distributed.ring.frame import FLAG_READY, FLAG_WARM, Frame, Kind, parse_step, with_hidden
from distributed.ring.handshake import RankInfo, answer_hello, answer_ready, check_weights, hash_code
from distributed.ring.ring import Ring, RingLost, clock_us
from distributed.ring.watchdog import RankStart, Watchdog


class Worker:
    """Serves one stage until STOP comes round."""

    def __init__(
        self,
        ring: Ring,
        stage: Stage,
        watchdog: Watchdog,
        step_timeout_seconds: float,
        info: RankInfo,
    ) -> None:
        """Args: info: this rank's line of the READY lap."""
        self._ring, self._stage, self._watchdog = ring, stage, watchdog
        self._step_timeout_seconds, self._info = step_timeout_seconds, info

    def run(self) -> None:
        """Answer frames in their order."""
        while self.answer(*receive(self._ring, self._watchdog, None)):
            pass
        self._ring.flush()

    def answer(self, frame: Frame, hidden: mx.array | None) -> bool:
        """Do what a frame asks for and pass it on; False: it was STOP."""
        self._watchdog.expect(self._step_timeout_seconds, frame.step)
        if frame.kind is Kind.STEP:
            self._step(frame, hidden)
        elif frame.kind is Kind.HELLO and frame.flags & FLAG_READY:
            self._ring.send(answer_ready(frame, self._info))
            self._watchdog.enter("ready", None)
        else:
            if frame.kind is Kind.CACHE:
                self._stage.drop_tables()
            self._ring.send(frame)
            if frame.flags & FLAG_WARM and (touch := self._stage.runner.touch) is not None:
                touch()
        return frame.kind is not Kind.STOP

    def _step(self, frame: Frame, hidden: mx.array | None) -> None:
        start_us = clock_us()
        step, ids = parse_step(frame)
        if ids is None and hidden is None:
            raise RingLost(f"step {frame.step} came with neither token ids nor hidden states")
        output = self._stage.run(step, mx.array(ids) if ids is not None else hidden)
        timed = frame.with_times(self._ring.rank, start_us, clock_us() - start_us)
        self._ring.send(with_hidden(timed), output)
        if self._stage.runner.can_build_ahead and not self._ring.is_readable():
            self._stage.build_ahead(step.one_further(), self._ring.expect_hidden)


def serve_worker(
    start: RankStart, settings: Settings, watchdog: Watchdog, threads: ProductThreads | None = None
) -> None:
    """Run a rank behind rank 0 until STOP.

    Args:
        threads: what its products run on, where there is no GPU.

    Raises:
        RingLost: the ring broke.
        RefusedStart: HELLO does not fit.
    """
    launch = Launch(start, settings, watchdog, threads)
    ring = join_ring(launch)
    frame, _ = receive(ring, watchdog, None)
    plan, answer = answer_hello(frame, ring, start, hash_code(ROOT), weights_hash)
    folder = Path(plan.model_folder)
    check_weights(plan, start, mark_weights(folder, plan.ranges, ring.rank, folder / SUMS_NAME))
    ring.send(answer)
    watchdog.enter("loading", plan.load_timeout_seconds)
    backend = choose_backend(folder, plan.products, ring.rank)
    stage, info = load_own_stage(launch, ring, plan, backend)
    Worker(ring, stage, watchdog, plan.step_timeout_seconds, info).run()
