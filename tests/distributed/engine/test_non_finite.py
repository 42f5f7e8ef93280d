"""A request with non-finite logits fails alone; no other request's tokens change, then or later."""

from __future__ import annotations

import random
from collections.abc import Callable
from collections.abc import Sequence as Items
from functools import cache, partial

import pytest

from distributed.backends.cpu.backend import CpuBackend
from distributed.backends.mlx import MlxBackend
from distributed.backends.stage import Stage
from distributed.engine.drafting import PromptLookup
from distributed.engine.row_sampling import RowSampling
from distributed.engine.sequence import Sequence, Status
from tests.fakes.checkpoints import make_poisoned
from tests.services.engine_in_process import given_draws
from tests.services.local_ring import GREEDY, WARM, LocalRing, answer, load_stages
from tests.services.scheduling import NoDrafts

POISON = 200
BAD = [3, 14, 15, POISON, 9, 2, 6]
SHORT, LONG = [(11 * i) % 190 for i in range(9)], [(7 * i + 5) % 190 for i in range(30)]
# Layers that hide rows from each other in their own ways, whole and cut.
WAYS = [("llama", None, (1, 1)), ("llama", "auto", (2,)), ("qwen2", "blas", (1, 1))]
WAYS += [("deepseek_v2", None, (1, 1)), ("deepseek_v2", "auto", (2,))]
WAYS += [("llama", "bfloat16", (1, 1))]  # by MLX alone, as on a GPU
# NumPy warns of NaN; the tests are about what comes of it.
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")

MakeRing = Callable[..., LocalRing]


@pytest.fixture(scope="module")
def stages_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[Stage]]:
    """Load each variant's stages once."""

    @cache
    def load(variant: str, products: str | None, split: tuple[int, ...]) -> list[Stage]:
        folder = make_poisoned(tmp_path_factory.mktemp(variant), variant, POISON, num_hidden_layers=2)
        if products == "bfloat16":
            return load_stages(folder, split, MlxBackend(), dtype=products)
        return load_stages(folder, split, CpuBackend(products))

    return load


@pytest.fixture(params=WAYS, ids=str)
def make_ring(request: pytest.FixtureRequest, stages_of: Callable[..., list[Stage]]) -> MakeRing:
    """Make rings of one model, one way to run its layers and one split."""
    return partial(LocalRing, stages_of(*request.param))


def alone(make_ring: MakeRing, prompt: Items[int], max_tokens: int, rule: RowSampling = GREEDY) -> list[int]:
    ring = make_ring()
    sequence = ring.ask(prompt, max_tokens, rule)
    ring.run()
    assert not ring.failed
    return answer(sequence)


@pytest.mark.parametrize("rule", [GREEDY, WARM], ids=["greedy", "drawn"])
def test_the_next_sequence_in_its_slot_is_not_spoiled(make_ring: MakeRing, rule: RowSampling) -> None:
    """A mask hides the KV after a short row's end, but 0 x NaN is NaN."""
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
    """Rows in the same microbatches get the tokens of their solo runs."""
    ring = make_ring()
    rows = [ring.ask(prompt, 8, rule) for prompt in (SHORT, BAD, LONG)]
    first = ring.scheduler.schedule()
    assert first is not None and rows[1] in first.sequences and len(first.rows) > 1
    ring.run()
    assert ring.failed == [rows[1]]
    assert answer(rows[0]) == alone(make_ring, SHORT, 8, rule)
    assert answer(rows[2]) == alone(make_ring, LONG, 8, rule)


def test_a_prefix_copied_from_it_before_it_failed_is_prefilled_again(make_ring: MakeRing) -> None:
    """Its later tokens spoil its earlier ones by 0 x NaN, and so a copy of those."""
    opening = LONG[:20]
    ring = make_ring(chunk=32, kept=1000)
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
    """No draw has proven its KV finite: it is neither kept nor left in the slot."""
    ring = make_ring(chunk=8, kept=1000)
    bad = ring.ask([POISON, *LONG], 8)
    ring.run(num_steps=1)
    assert bad.num_cached_tokens == 8
    ring.scheduler.finish(bad)
    assert ring.scheduler.slots.prefix_cache.num_tokens == 0
    short, long = ring.ask(SHORT[:2], 8), ring.ask(LONG, 8)
    ring.run()
    assert not ring.failed
    assert answer(short) == alone(make_ring, SHORT[:2], 8)
    assert answer(long) == alone(make_ring, LONG, 8)


class Misled(NoDrafts):
    """Drafts the poisoned token and one more."""

    def propose(self, sequences: Items[Sequence]) -> list[tuple[int, ...]]:
        return [(POISON, 1)[: each.max_total_tokens - len(each.token_ids) - 1] for each in sequences]


def test_a_draft_with_non_finite_logits_costs_a_step_and_no_answer(make_ring: MakeRing) -> None:
    """The row is stepped again without drafts and gets the same tokens, as do its neighbours."""
    ring = make_ring(drafter=Misled())
    rows = [ring.ask(prompt, 10) for prompt in (SHORT[:3], LONG)]
    ring.run()
    assert not ring.failed
    assert [answer(row) for row in rows] == [alone(make_ring, SHORT[:3], 10), alone(make_ring, LONG, 10)]


def test_an_answer_that_draws_it_keeps_the_tokens_before(
    make_ring: MakeRing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The poisoned token is the last of the answer; the one after it cannot be drawn."""
    monkeypatch.setattr("tests.services.local_ring.Draws", given_draws({0: [POISON] * 8}))
    ring = make_ring()
    row = ring.ask(SHORT, 8)
    ring.run()
    assert (ring.failed, answer(row)) == ([row], [POISON])


def make_prompt(source: random.Random) -> list[int]:
    """Make a prompt that often shares a prefix with others and sometimes holds the poisoned token."""
    opening, length = source.randint(0, 3), source.randint(8, 60)
    prompt = [(37 * opening + 11 * i) % 190 for i in range(length if opening else 0)]
    prompt += [source.randint(0, 189) for _ in range(source.randint(1, 40))]
    if source.random() < 0.35:
        prompt.insert(source.randint(0, len(prompt)), POISON)
    return prompt


class Wild(Misled):
    """Drafts random tokens, sometimes the poisoned one."""

    def __init__(self, source: random.Random) -> None:
        self._source = source

    def propose(self, sequences: Items[Sequence]) -> list[tuple[int, ...]]:
        """See Drafter."""
        wild = [
            tuple(self._source.choice((POISON, 5, 9)) for _ in range(self._source.randint(0, 4)))
            for _ in sequences
        ]
        return [
            draft[: max(0, each.max_total_tokens - len(each.token_ids) - 1)]
            for draft, each in zip(wild, sequences, strict=True)
        ]


def test_in_any_mix_each_request_ends_as_it_does_alone(
    make_ring: MakeRing, request: pytest.FixtureRequest
) -> None:
    """Shared prefixes, kept tokens, drafts, cancels and little KV: the same tokens, the same failures."""
    source = random.Random(request.node.name)
    plan = [(make_prompt(source), source.randint(1, 60), source.choice((GREEDY, WARM))) for _ in range(7)]
    expected = []
    for each in plan:
        single = make_ring()
        sequence = single.ask(*each)
        single.run()
        expected.append((bool(single.failed), answer(sequence)))
    ring = make_ring(
        kept=source.choice((0, 300, 2000)),
        chunk=source.choice((8, 16, 64)),
        num_tables=source.randint(1, 2),
        max_rows=source.randint(2, 5),
        max_kv_tokens=1024,
        drafter=source.choice((None, Wild(source), PromptLookup())),
    )
    sequences: list[Sequence] = []
    gone = set()
    while len(sequences) < len(plan) or ring.scheduler.has_work:
        if len(sequences) < len(plan) and source.random() < 0.3:
            sequences.append(ring.ask(*plan[len(sequences)]))
        elif sequences and source.random() < 0.02:
            victim = source.choice(sequences)
            if victim.status is not Status.FINISHED:
                ring.scheduler.finish(victim)
                gone.add(victim)
        ring.run(num_steps=1)
    for sequence, wanted in zip(sequences, expected, strict=True):
        assert sequence in gone or (sequence in ring.failed, answer(sequence)) == wanted
