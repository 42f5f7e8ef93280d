"""A request whose numbers are not finite fails, alone; nobody else's tokens change, then or later."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Items
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from distributed.sampling_key import RowSampling
from distributed.sequence import Sequence
from tests.local_ring import GREEDY, WARM, LocalRing, RingShape, answer, make_poisoned

POISON = 200
SPLITS = ((4,), (2, 2))
BAD = [3, 14, 15, POISON, 9, 2, 6]
SHORT, LONG = [(11 * i) % 190 for i in range(9)], [(7 * i + 5) % 190 for i in range(30)]
WAYS = [("llama", None), ("llama", "auto"), ("qwen2", None), ("qwen2", "blas")]
WAYS += [("deepseek_v2", None), ("deepseek_v2", "auto")]
WAYS += [("llama", "bfloat16")]  # by MLX alone, as on a GPU
# NumPy warns of NaN; the tests are about what comes of it.
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")

MakeRing = Callable[..., LocalRing]


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Make each variant's folder once."""
    return cache(lambda variant: make_poisoned(tmp_path_factory.mktemp(variant), variant, POISON))


@pytest.fixture(params=[(*way, split) for way in WAYS for split in SPLITS], ids=str)
def make_ring(request: pytest.FixtureRequest, folder_of: Callable[[str], Path]) -> MakeRing:
    """Make rings of one model, one way to run its layers and one split."""
    variant, products, split = request.param

    def make(shape: RingShape | None = None, **options: object) -> LocalRing:
        kind = "dtype" if products == "bfloat16" else "cpu_products"
        kinds: dict[str, Any] = {kind: products, **options}
        return LocalRing(folder_of(variant), split, shape or RingShape(), **kinds)

    return make


def alone(make_ring: MakeRing, prompt: Items[int], max_tokens: int, rule: RowSampling = GREEDY) -> list[int]:
    ring = make_ring()
    sequence = ring.ask(prompt, max_tokens, rule)
    ring.run()
    assert not ring.failed
    return answer(sequence)


@pytest.mark.parametrize("rule", [GREEDY, WARM], ids=["greedy", "drawn"])
def test_who_comes_into_its_slot_is_not_spoiled(make_ring: MakeRing, rule: RowSampling) -> None:
    """What lies behind a short row's end is hidden from it, but 0 x NaN is NaN."""
    ring = make_ring()
    bad = ring.ask(BAD, 8, rule)
    ring.run()
    assert (ring.failed, answer(bad)) == ([bad], [])
    short, long = ring.ask(SHORT[:2], 12, rule), ring.ask(LONG, 12, rule)
    ring.run()
    assert (ring.failed, short.slot, long.slot) == ([bad], 0, 1)
    assert answer(short) == alone(make_ring, SHORT[:2], 12, rule)
    assert answer(long) == alone(make_ring, LONG, 12, rule)


@pytest.mark.parametrize("rule", [GREEDY, WARM], ids=["greedy", "drawn"])
def test_its_neighbours_in_the_same_microbatch_are_not_spoiled(
    make_ring: MakeRing, rule: RowSampling
) -> None:
    """Rows that are read and stepped together with it end as they do alone."""
    ring = make_ring()
    rows = [ring.ask(prompt, 8, rule) for prompt in (SHORT, BAD, LONG)]
    first = ring.scheduler.schedule()
    assert first is not None and rows[1] in first.sequences and len(first.rows) > 1
    ring.run()
    assert ring.failed == [rows[1]]
    assert answer(rows[0]) == alone(make_ring, SHORT, 8, rule)
    assert answer(rows[2]) == alone(make_ring, LONG, 8, rule)


def test_what_was_copied_from_it_before_it_failed_is_read_again(make_ring: MakeRing) -> None:
    """Its later tokens spoil its own earlier ones by 0 x NaN, and a copy of those with them."""
    opening = LONG[:20]
    ring = make_ring(RingShape(chunk=32, max_kept_tokens=1000))
    bad = ring.ask([*opening, POISON, *LONG], 8)
    ring.scheduler.schedule()
    sharing = ring.ask([*opening, 1, 2, 3], 8)
    ring.run()
    later = ring.ask([*opening, 4, 5], 8)
    ring.run()
    assert ring.failed == [bad]
    assert answer(sharing) == alone(make_ring, [*opening, 1, 2, 3], 8)
    assert answer(later) == alone(make_ring, [*opening, 4, 5], 8)


def test_a_request_that_was_cancelled_before_its_first_token_leaves_nothing(make_ring: MakeRing) -> None:
    """No draw has shown that its numbers are finite: they are neither kept nor left in the slot."""
    ring = make_ring(RingShape(chunk=8, max_kept_tokens=1000))
    bad = ring.ask([POISON, *LONG], 8)
    ring.run(num_steps=1)
    assert bad.num_cached_tokens == 8
    ring.scheduler.finish(bad)
    assert ring.scheduler.slots.num_kept_tokens == 0
    short, long = ring.ask(SHORT[:2], 8), ring.ask(LONG, 8)
    ring.run()
    assert not ring.failed
    assert answer(short) == alone(make_ring, SHORT[:2], 8)
    assert answer(long) == alone(make_ring, LONG, 8)


class Misled:
    """Guesses the token that is not finite, behind one that is."""

    def propose(self, sequences: Items[Sequence]) -> list[tuple[int, ...]]:
        return [(POISON, 1)[: each.max_total_tokens - len(each.token_ids) - 1] for each in sequences]

    def learn(self, sequence: Sequence, num_drafts: int, num_right: int) -> None:
        pass

    def note_cost(self, num_tokens: int, busy_us: float) -> None:
        pass

    def forget(self, sequence: Sequence) -> None:
        pass


def test_a_guess_that_is_not_finite_costs_a_step_and_no_answer(make_ring: MakeRing) -> None:
    """It is tried again without guesses, with the same tokens in the end, for neighbours too."""
    ring = make_ring(drafter=Misled())
    rows = [ring.ask(prompt, 10) for prompt in (SHORT[:3], LONG)]
    ring.run()
    assert not ring.failed
    assert [answer(row) for row in rows] == [alone(make_ring, SHORT[:3], 10), alone(make_ring, LONG, 10)]


def test_an_answer_that_comes_to_it_keeps_the_tokens_before(make_ring: MakeRing) -> None:
    """The token that is not finite is the last one of the log; the one after it cannot be drawn."""
    ring = make_ring()
    row = ring.ask(SHORT, 8, RowSampling(**{**vars(GREEDY), "forced": POISON}))
    ring.run()
    assert (ring.failed, answer(row)) == ([row], [POISON])
