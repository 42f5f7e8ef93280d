"""A ring in the test's own process: frames encoded as on a wire, workers that run while rank 0 waits."""

from __future__ import annotations

import select
from collections import deque
from collections.abc import Iterable

import mlx.core as mx

from distributed.ring.frame import Frame, Int32Array, decode, encode, num_rest_ints
from distributed.ring.ring import RingLost
from distributed.worker import Worker

# After so many idle waits in a row the awaited frame will never come.
MAX_IDLE_WAITS = 20_000


class DrivenClock:
    """A clock that only `advance` moves, in seconds."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class Wire:
    """The frames in flight to each rank: messages 1 and 2, and hidden states."""

    def __init__(self, num_ranks: int) -> None:
        self.arriving: list[deque[tuple[Int32Array, Int32Array | None, mx.array | None]]] = [
            deque() for _ in range(num_ranks)
        ]
        self.is_lost = False
        self.is_silent = False


class RingEnd:
    """One rank's end of a ring in one process: the protocol `distributed.ring.ring.Ring`."""

    def __init__(self, rank: int, epoch: int, wire: Wire) -> None:
        self.rank, self.size, self.epoch = rank, len(wire.arriving), epoch
        self._wire, self._arriving = wire, wire.arriving[rank]

    def send(self, frame: Frame, hidden: mx.array | None = None) -> None:
        self._check()
        assert frame.has_hidden == (hidden is not None)
        if not self._wire.is_silent:
            self._wire.arriving[(self.rank - 1) % self.size].append((*encode(frame), hidden))

    def is_readable(self) -> bool:
        return bool(self._arriving)

    def expect_hidden(self, num_rows: int, num_tokens: int) -> None:
        """Return nothing: hidden states are there when they are sent."""

    def recv(self) -> tuple[Frame, mx.array | None]:
        self._check()
        block, rest, hidden = self._arriving.popleft()
        assert (num_rest_ints(block, epoch=self.epoch) > 0) == (rest is not None)
        return decode(block, rest), hidden

    def wait(self, timeout: float | None, others: Iterable[int] = ()) -> set[int]:
        """Return the ready ones of `others`, at once."""
        self._check()
        return set(select.select(list(others), [], [], 0)[0])

    def flush(self) -> None:
        """Do nothing: no frame waits to be sent."""

    def _check(self) -> None:
        if self._wire.is_lost:
            raise RingLost("the test ended it")


class RingOfStages(RingEnd):
    """Rank 0's end: while it waits, the workers of all other ranks answer their frames."""

    def __init__(self, epoch: int, wire: Wire, clock: DrivenClock) -> None:
        super().__init__(0, epoch, wire)
        self._clock = clock
        self.workers: list[tuple[RingEnd, Worker]] = []
        self._num_idle = 0

    def wait(self, timeout: float | None, others: Iterable[int] = ()) -> set[int]:
        """Pass every frame on as far as it can go; if none arrives, advance the clock by the timeout."""
        ready = super().wait(0.0, others)
        while self._pass_on_all():
            pass
        if ready or self.is_readable():
            self._num_idle = 0
            return ready
        assert timeout is not None
        self._clock.advance(timeout)
        self._num_idle += 1
        assert self._num_idle < MAX_IDLE_WAITS, "rank 0 waits for what never comes"
        return ready

    def _pass_on_all(self) -> int:
        """Let each worker answer one frame; return how many did."""
        having = [(end, worker) for end, worker in self.workers if end.is_readable()]
        for end, worker in having:
            worker.answer(*end.recv())
        return len(having)
