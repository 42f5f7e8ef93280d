"""Rank 0 keeps no more bytes in flight than a socket takes without blocking."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from distributed.engine.engine import Engine, EngineLimits, EngineParts
from distributed.ring.frame import Frame
from distributed.ring.ring import MAX_UNREAD_BYTES
from tests.services.scheduling import give_back, make_scheduler, make_sequence


class Bench:
    """An engine with only its sending side; frames stay in `sent` until `take_back`."""

    def __init__(self, num_tables: int, chunk: int) -> None:
        self.sent: list[Frame] = []
        self.scheduler = scheduler = make_scheduler(num_tables=num_tables, chunk=chunk, max_kv_tokens=10**6)
        ring: Any = SimpleNamespace(epoch=1, send=self.sent.append)
        status: Any = SimpleNamespace(trace=SimpleNamespace(sent=lambda number: None))
        writer: Any = SimpleNamespace(answer_of=lambda sequence: SimpleNamespace(constraint=None))
        nothing: Any = None
        limits = EngineLimits(1.0, 1.0, 1.0, 1.0, 0)
        parts = EngineParts(ring, nothing, scheduler, nothing, writer, status, nothing)
        self.engine = Engine(parts, limits)

    def add(self, num_sequences: int, num_prompt: int, max_tokens: int = 5) -> None:
        for number in range(num_sequences):
            self.scheduler.add(make_sequence(str(number), num_prompt, max_tokens, first=20_000 * number))

    def launch(self) -> list[int]:
        """Launch all that may leave; return the sizes of the frames in flight."""
        self.engine._launch()
        assert self.scheduler.in_flight and self.sent[0].step == self.scheduler.in_flight[0].number
        sizes = [frame.num_bytes for frame in self.sent]
        assert len(sizes) == 1 or sum(sizes) <= MAX_UNREAD_BYTES
        return sizes

    def take_back(self) -> None:
        self.sent.pop(0)
        self.engine._sent.popleft()
        give_back(self.scheduler, self.scheduler.in_flight[0])


def test_small_frames_are_in_flight_together_however_large_a_chunk_may_be() -> None:
    """One decode group of each table is in flight beside the largest possible chunk."""
    bench = Bench(num_tables=3, chunk=7800)
    bench.add(6, 10, max_tokens=50)
    for _ in range(12):
        bench.launch()
        bench.take_back()
    assert len(bench.launch()) == 3


def test_a_large_frame_waits_for_its_turn_and_nothing_passes_it() -> None:
    """Two chunks of 31 KB are never in flight together; the second leaves when the first is back."""
    bench = Bench(num_tables=2, chunk=7800)
    bench.add(2, 7800)
    assert len(bench.launch()) == 1
    assert len(bench.scheduler.in_flight) == 2
    assert len(bench.launch()) == 1
    bench.take_back()
    assert bench.launch()[0] > 31_000
    while bench.scheduler.has_work:
        bench.launch()
        bench.take_back()


def test_a_frame_that_is_larger_than_the_credit_goes_alone() -> None:
    """It could never be sent otherwise."""
    bench = Bench(num_tables=2, chunk=10_000)
    bench.add(2, 10_000)
    (size,) = bench.launch()
    assert size > MAX_UNREAD_BYTES


def test_a_frame_that_waits_leaves_at_the_end_too() -> None:
    """The drain waits for all microbatches in flight, so the frame must be sent."""
    bench = Bench(num_tables=2, chunk=7800)
    bench.add(2, 7800)
    bench.launch()
    bench.engine._is_ending = True
    bench.take_back()
    assert len(bench.launch()) == 1
    bench.take_back()
    bench.engine._launch()
    assert not bench.scheduler.in_flight
