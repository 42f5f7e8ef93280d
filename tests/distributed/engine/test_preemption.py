"""Admission counts the KV that rows hold; when KV runs short the youngest waits and keeps its text."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distributed.backends.cpu.backend import CpuBackend
from distributed.engine.scheduler import Scheduler
from distributed.engine.sequence import Sequence, Status
from distributed.planning.kv_sizes import most_tokens, next_tokens, padded_tokens, round_tokens
from tests.fakes.checkpoints import shared_checkpoint
from tests.services.local_ring import GREEDY, WARM, LocalRing, answer, load_stages
from tests.services.scheduling import WrittenKV, give_back, make_scheduler, make_sequence, take


def launch(scheduler: Scheduler, kv: WrittenKV) -> None:
    """Launch all that is ready; the stages' memory equals the accounts and is within the budget."""
    while microbatch := scheduler.schedule():
        kv.step(microbatch)
        assert kv.num_tokens == scheduler.slots.num_kv_tokens <= scheduler.limits.slots.max_kv_tokens


def play(scheduler: Scheduler, kv: WrittenKV, *, num_steps: int = 100_000) -> None:
    """Step until all are done, at most `num_steps` times."""
    for _ in range(num_steps):
        launch(scheduler, kv)
        if not scheduler.in_flight:
            assert not scheduler.has_work
            return
        give_back(scheduler, scheduler.in_flight[0])


def receive(scheduler: Scheduler, ends: Mapping[Sequence, int]) -> None:
    """Take the oldest microbatch back; finish the sequences that have reached their end."""
    for sequence in give_back(scheduler, scheduler.in_flight[0]):
        if sequence.is_running and sequence.num_answer_tokens >= ends[sequence]:
            scheduler.finish(sequence)


@settings(max_examples=30, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.integers(1, 700), st.integers(200, 1200), st.integers(100, 1200)), min_size=2, max_size=8
    ),
    num_tables=st.integers(1, 3),
    max_rows=st.integers(2, 5),
    max_kv_tokens=st.integers(2000, 5000),
    kept=st.sampled_from([0, 700]),
    max_gathered=st.integers(0, 4),
    cancelled=st.dictionaries(st.integers(1, 400), st.integers(0, 8), max_size=4),
)
def test_the_budget_holds_and_every_sequence_ends(
    rows: list[tuple[int, int, int]],
    num_tables: int,
    max_rows: int,
    max_kv_tokens: int,
    kept: int,
    max_gathered: int,
    cancelled: dict[int, int],
) -> None:
    """Any lengths, early ends and cancels: admitted in order, nothing is lost or mixed up."""
    scheduler = make_scheduler(
        num_tables=num_tables,
        max_rows=max_rows,
        max_kv_tokens=max_kv_tokens,
        kept=kept,
        max_gathered=max_gathered,
    )
    room = most_tokens(1, max_kv_tokens)
    sequences = [
        make_sequence(str(i), row[0], min(row[1], room - row[0]), first=1000 * i)
        for i, row in enumerate(rows)
    ]
    ends = {sequence: row[2] for sequence, row in zip(sequences, rows, strict=True)}
    coming, gone = sequences[::-1], set()
    kv, admitted = WrittenKV(), dict[Sequence, None]()
    for turn in range(50_000):
        if coming and turn % 3 == 0:
            scheduler.add(coming.pop())
        launch(scheduler, kv)
        admitted |= dict.fromkeys(scheduler.running)
        victim = sequences[cancelled[turn] % len(sequences)] if turn in cancelled else None
        if victim is not None and victim.status is not Status.FINISHED and victim not in coming:
            scheduler.finish(victim)
            gone.add(victim)
        if scheduler.in_flight:
            receive(scheduler, ends)
        elif not coming:
            break
    assert not scheduler.has_work
    assert list(admitted) == sorted(admitted, key=sequences.index)
    for sequence in set(sequences) - gone:
        assert sequence.num_answer_tokens == min(sequence.max_tokens, ends[sequence])


def test_possible_long_answers_keep_no_request_waiting() -> None:
    """Eight chats with the rest of a context of 32,768 tokens run at once where four such answers fit."""
    scheduler = make_scheduler(num_tables=2, max_rows=32, max_kv_tokens=138_084)
    for number in range(8):
        scheduler.add(make_sequence(str(number), 300, 32_768 - 300, first=1000 * number))
    play(scheduler, WrittenKV(), num_steps=200)
    assert len(scheduler.running) == 8
    assert scheduler.num_preemptions == 0


def make_crowd(scheduler: Scheduler, num_rows: int = 4, num_prompt: int = 500) -> list[Sequence]:
    crowd = [make_sequence(str(i), num_prompt, 2000, first=1000 * i) for i in range(num_rows)]
    for sequence in crowd:
        scheduler.add(sequence)
    return crowd


def test_the_youngest_gives_way_and_comes_again_when_there_is_room() -> None:
    """Never the oldest; it runs again when all rows have room to grow, so little is prefilled twice."""
    scheduler, kv = make_scheduler(num_tables=2, max_kv_tokens=6000, kept=0), WrittenKV()
    crowd = make_crowd(scheduler)
    seen: list[str] = []
    for _ in range(20_000):
        running = list(scheduler.running)
        play(scheduler, kv, num_steps=1)
        seen += [each.id for each in running if each.status is Status.WAITING]
        if not scheduler.has_work:
            break
    assert not scheduler.has_work
    assert seen[:2] == ["3", "2"]
    assert len(seen) == scheduler.num_preemptions <= 5
    assert crowd[0].num_preemptions == 0
    assert all(sequence.num_answer_tokens == 2000 for sequence in crowd)


def test_kept_tokens_go_before_any_row_does() -> None:
    """Kept tokens are dropped when a running row needs their room."""
    scheduler, kv = make_scheduler(num_tables=2, max_kv_tokens=5000, kept=4096), WrittenKV()
    for number in range(2):
        scheduler.add(make_sequence(f"kept {number}", 900, 5, first=5000 + 1000 * number))
    play(scheduler, kv)
    assert scheduler.slots.prefix_cache.num_tokens > 1000
    scheduler.add(make_sequence("long", 1000, 3000))
    play(scheduler, kv)
    assert scheduler.num_preemptions == 0


def test_a_row_that_comes_back_after_it_was_put_back_and_admitted_again_is_not_taken() -> None:
    """The row belongs to the earlier admission: its KV is in no slot any more."""
    scheduler = make_scheduler(num_tables=1, max_kv_tokens=4096, kept=0)
    old, young = (make_sequence(name, 10, 500, first=100 * n) for n, name in enumerate("ab"))
    for sequence in (old, young):
        scheduler.add(sequence)
    first = take(scheduler)
    assert first.sequences == [old, young]
    scheduler._put_back(young)
    scheduler.limits = scheduler.limits.__class__(**{**vars(scheduler.limits), "max_in_flight": 3})
    again = take(scheduler)
    assert again.sequences == [young] and again.rows[0].offset == 0
    assert not first.rows[1].wants_tokens and again.rows[0].wants_tokens
    scheduler.postprocess(first, {old: [7], young: [9]})
    assert (young.num_answer_tokens, young.num_cached_tokens, old.num_answer_tokens) == (0, 0, 1)
    scheduler.postprocess(again, {young: [8]})
    assert young.token_ids[10:] == [8]


def test_a_suspect_that_runs_alone_is_not_put_back() -> None:
    """It is marked in the spool as running alone: others wait instead."""
    scheduler, kv = make_scheduler(num_tables=1, max_kv_tokens=2048, kept=0), WrittenKV()
    scheduler.add(make_sequence("old", 400, 900))
    suspect = make_sequence("suspect", 400, 900, first=2000)
    suspect.is_suspect = True
    scheduler.add(suspect)
    play(scheduler, kv, num_steps=1300)
    assert (suspect.status, suspect.num_preemptions) == (Status.FINISHED, 0)


def test_a_table_grows_by_a_step_and_in_powers_of_two_while_there_is_room() -> None:
    """A row has room for a step more than it holds, at most for its longest answer."""
    scheduler = make_scheduler(num_tables=1)
    scheduler.add(make_sequence("a", 600, 5000))
    scheduler.schedule()
    assert scheduler.slots.num_kv_tokens == next_tokens(600) == round_tokens(600) + 512
    short = make_scheduler(num_tables=1)
    short.add(make_sequence("b", 10, 20))
    short.schedule()
    assert short.slots.num_kv_tokens == padded_tokens(1, 30)


def test_a_burst_of_requests_grows_a_table_once() -> None:
    """Each growth copies the table."""
    scheduler = make_scheduler(num_tables=2, max_rows=16)
    for number in range(20):
        scheduler.add(make_sequence(str(number), 3, 20, first=1000 * number))
    first = take(scheduler)
    assert sorted((order.table, order.num_rows) for order in first.resizes) == [(0, 16), (1, 16)]


# Both kinds of KV, by MLX and by NumPy, whole and cut.
@pytest.mark.parametrize(("products", "split"), [(None, (1, 1)), ("auto", (2,))])
@pytest.mark.parametrize("variant", ["llama", "deepseek_v2"])
def test_answers_are_as_if_alone(variant: str, products: str | None, split: tuple[int, ...]) -> None:
    """Greedy and drawn rows that are preempted and resumed have every token of their solo run."""
    prompts = [[(7 * i + 31 * j + 3) % 250 for i in range(30 + 9 * j)] for j in range(4)]
    rules = [GREEDY, WARM, GREEDY, WARM]
    stages = load_stages(shared_checkpoint(variant, num_hidden_layers=2), split, CpuBackend(products))
    crowded = LocalRing(stages, num_tables=2, max_kv_tokens=640, chunk=32)
    rows = [crowded.ask(prompt, 80, rule) for prompt, rule in zip(prompts, rules, strict=True)]
    crowded.run()
    assert crowded.scheduler.num_preemptions > 0
    for row, prompt, rule in zip(rows, prompts, rules, strict=True):
        alone = LocalRing(stages)
        single = alone.ask(prompt, 80, rule)
        alone.run()
        assert answer(row) == answer(single)
