"""The loop of a rank behind rank 0: receive a frame, run the layers, pass it on.

Knows no prompts, no tokenizer, no HTTP and no settings files; what it needs came with HELLO.
"""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx

from distributed.frame import FLAG_READY, Frame, Kind, parse_step, with_hidden
from distributed.handshake import RankInfo, answer_ready
from distributed.lifeline import Lifeline
from distributed.ring import Ring, RingLost, clock_us
from distributed.stage import Stage


class Worker:
    """Serves one stage until STOP comes round."""

    def __init__(
        self,
        ring: Ring,
        stage: Stage,
        lifeline: Lifeline,
        step_timeout_seconds: float,
        describe: Callable[[], RankInfo],
    ) -> None:
        """Args: describe: makes this rank's line of the READY lap."""
        self._ring, self._stage, self._lifeline = ring, stage, lifeline
        self._step_timeout_seconds, self._describe = step_timeout_seconds, describe

    def run(self) -> None:
        """Answer frames in their order."""
        while self.answer(*receive(self._ring, self._lifeline)):
            pass
        self._ring.flush()

    def answer(self, frame: Frame, hidden: mx.array | None) -> bool:
        """Do what a frame asks for and pass it on; False: it was STOP."""
        self._lifeline.expect(self._step_timeout_seconds, frame.step)
        if frame.kind is Kind.STEP:
            self._step(frame, hidden)
        elif frame.kind is Kind.HELLO and frame.flags & FLAG_READY:
            self._ring.send(answer_ready(frame, self._describe()))
            self._lifeline.enter("ready", None)
        else:
            if frame.kind is Kind.CACHE:
                self._stage.drop_tables()
            self._ring.send(frame)
        return frame.kind is not Kind.STOP

    def _step(self, frame: Frame, hidden: mx.array | None) -> None:
        start_us = clock_us()
        step, ids = parse_step(frame)
        if ids is None and hidden is None:
            raise RingLost(f"step {frame.step} came with neither token ids nor hidden states")
        self._ring.begin_recv()
        output = self._stage.run(step, mx.array(ids) if ids is not None else hidden)
        timed = frame.with_times(self._ring.rank, start_us, clock_us() - start_us)
        self._ring.send(with_hidden(timed), output)


def receive(ring: Ring, lifeline: Lifeline) -> tuple[Frame, mx.array | None]:
    """Wait as long as it takes for the next frame; the watchdog rests meanwhile."""
    lifeline.expect(None)
    while not ring.is_readable():
        ring.wait(None)
    return ring.recv()
