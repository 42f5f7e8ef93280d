"""Scheduler and slots as data in, data out."""

from __future__ import annotations

import itertools
from collections.abc import Sequence as Items
from dataclasses import replace
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from config import load_settings
from distributed.engine.chunks import NUM_PACED_CHUNKS, ChunkPace, best_fill, within_scores
from distributed.engine.scheduler import Scheduler, SchedulerLimits
from distributed.engine.sequence import Advance, Sequence, Status
from distributed.engine.slots import SlotLimits, SlotTables
from distributed.planning.capacities import NUM_SCORE_ARRAYS, attention_bytes, max_chunk_scores
from distributed.planning.kv_sizes import most_tokens, padded_tokens, round_rows, round_tokens
from distributed.planning.step import PrefixCopy
from tests.fakes.model_shapes import make_model_shape
from tests.services.scheduling import (
    NoDrafts,
    WrittenKV,
    cancel,
    give_back,
    make_scheduler,
    make_sequence,
    run_all,
    take,
)


def test_a_prompt_goes_in_chunks_and_then_decodes_token_by_token() -> None:
    """A prompt of 150 tokens takes three chunks of at most 64, only the last asks for logits."""
    scheduler = make_scheduler(num_tables=1)
    scheduler.add(make_sequence("a", num_prompt=150, max_tokens=3))
    log = run_all(scheduler)
    assert [(m.is_prefill, m.num_tokens, m.wants_logits) for m in log] == [
        (True, 64, False),
        (True, 64, False),
        (True, 22, True),
        (False, 1, True),
        (False, 1, True),
    ]
    assert [m.rows[0].offset for m in log] == [0, 64, 128, 150, 151]


def test_chunks_of_one_prompt_follow_each_other_without_waiting_for_the_lap() -> None:
    """With two microbatches allowed, the second chunk leaves before the first is back."""
    scheduler = make_scheduler()
    scheduler.add(make_sequence("a", num_prompt=200))
    _, second = take(scheduler), take(scheduler)
    assert (second.rows[0].offset, len(scheduler.in_flight)) == (64, 2)
    assert scheduler.schedule() is None


def test_sequences_spread_over_tables_so_that_microbatches_are_even() -> None:
    """Eight like sequences fill two tables with four rows each."""
    scheduler = make_scheduler()
    for name in "abcdefgh":
        scheduler.add(make_sequence(name))
    scheduler.schedule()
    assert [table.num_running for table in scheduler.slots.tables] == [4, 4]


def test_short_prompts_share_a_chunk() -> None:
    """Prompts of like length in one table go together as far as rows x columns fit the chunk."""
    scheduler = make_scheduler(num_tables=1, chunk=64)
    for number, name in enumerate("abcdef"):
        scheduler.add(make_sequence(name, num_prompt=12, first=100 * number))
    microbatch = take(scheduler)
    assert len(microbatch.rows) == 5  # 5 x 12 = 60 tokens


def test_a_chunk_takes_the_beginnings_of_several_prompts_where_that_fills_it() -> None:
    """Two prompts of 40 go half and half where one would leave much of a chunk of 64 empty; a short one does
    not narrow a long one."""
    scheduler = make_scheduler(num_tables=1, chunk=64)
    for number, name in enumerate("ab"):
        scheduler.add(make_sequence(name, num_prompt=40, first=100 * number))
    log = run_all(scheduler)
    assert [[len(row.token_ids) for row in m.rows] for m in log if m.is_prefill] == [[32, 32], [8, 8]]
    assert best_fill([60, 5, 5], 64) == (1, 60)
    assert best_fill([500, 500], 64) == (1, 64)


def test_a_prompt_that_begins_as_another_waits_a_chunk_and_copies() -> None:
    """A common prefix of two new prompts is stepped once, though both came together."""
    scheduler = make_scheduler(num_tables=1, chunk=64)
    opening = list(range(20))
    for number in range(3):
        scheduler.add(Sequence(str(number), [*opening, *range(100 * number + 50, 100 * number + 60)], 30, 2))
    log = [m for m in run_all(scheduler) if m.is_prefill]
    assert [(len(m.rows), len(m.copies)) for m in log] == [(1, 0), (2, 2)]
    assert [row.offset for row in log[1].rows] == [20, 20]


class FixedDrafts(NoDrafts):
    """Drafts the same tokens for every row, and records how many were accepted."""

    def __init__(self, draft: tuple[int, ...]) -> None:
        self.draft = draft
        self.learned: list[tuple[int, int]] = []

    def propose(self, sequences: Items[Sequence]) -> list[tuple[int, ...]]:
        return [
            self.draft[: max(0, sequence.max_total_tokens - len(sequence.token_ids) - 1)]
            for sequence in sequences
        ]

    def learn(self, sequence: Sequence, num_drafts: int, num_right: int) -> None:
        self.learned.append((num_drafts, num_right))


def test_drafts_count_as_far_as_the_draws_are_equal() -> None:
    """Two of three drafts are accepted: three tokens in one step; the rest is overwritten."""
    drafter = FixedDrafts((1, 2, 9))
    scheduler = make_scheduler(num_tables=1, drafter=drafter)
    sequence = make_sequence("a", num_prompt=10, max_tokens=8)
    scheduler.add(sequence)
    prompt = take(scheduler)
    scheduler.postprocess(prompt, {sequence: [50]})
    step = take(scheduler)
    assert (step.rows[0].token_ids, step.rows[0].num_drafts) == ((50, 1, 2, 9), 3)
    advanced = scheduler.postprocess(step, {sequence: [1, 2, 3, 4]})
    assert advanced == [Advance(sequence, (1, 2, 3))]
    assert drafter.learned == [(3, 2)]
    again = take(scheduler)
    assert (again.rows[0].offset, again.rows[0].token_ids[0]) == (13, 3)
    assert sequence.num_cached_tokens == 13


def test_an_answer_ends_within_accepted_drafts() -> None:
    """Tokens after an end token, and beyond max_tokens, are never part of the answer."""
    drafter = FixedDrafts((1, 2, 3))
    scheduler = make_scheduler(num_tables=1, drafter=drafter)
    ending = Sequence("a", [100, 101], 2, 20, end_token_ids=frozenset({2}))
    short = Sequence("b", [200, 201], 2, 3)
    for sequence in (ending, short):
        scheduler.add(sequence)
    prompts = take(scheduler)
    scheduler.postprocess(prompts, {ending: [50], short: [50]})
    step = take(scheduler)
    drawn = {row.sequence: [1, 2, 3, 4][: row.num_drafts + 1] for row in step.rows if row.sequence}
    advanced = {advance.sequence: advance.token_ids for advance in scheduler.postprocess(step, drawn)}
    assert advanced == {ending: (1, 2), short: (1, 2)}
    assert (ending.ended_by, short.ended_by) == ("stop", "length")


def test_decode_waits_for_at_most_one_chunk() -> None:
    """While a long prompt comes in, between two steps of a running sequence there is one chunk, never two."""
    scheduler = make_scheduler(num_tables=2, chunk=16)
    for name in ("a", "b"):
        scheduler.add(make_sequence(name, max_tokens=50))
    for _ in range(6):
        while scheduler.schedule():
            pass
        give_back(scheduler, scheduler.in_flight[0])
    scheduler.add(make_sequence("long", num_prompt=400, first=1000))
    order: list[str] = []
    for _ in range(40):
        while microbatch := scheduler.schedule():
            order.append("chunk" if microbatch.is_prefill else f"decode {microbatch.table}")
        give_back(scheduler, scheduler.in_flight[0])
    assert "chunk" in order
    for table in ("decode 0", "decode 1"):
        steps = [i for i, what in enumerate(order) if what == table]
        between = [order[a:b].count("chunk") for a, b in itertools.pairwise(steps)]
        assert max(between) <= 1


def test_rows_of_a_finished_sequence_in_flight_come_back_unused() -> None:
    """A cancelled sequence gets no token from a step in flight, its neighbour does."""
    scheduler = make_scheduler(num_tables=1)
    a, b = make_sequence("a"), make_sequence("b", first=500)
    scheduler.add(a)
    scheduler.add(b)
    while scheduler.schedule():
        pass
    give_back(scheduler, scheduler.in_flight[0])
    if not scheduler.in_flight:
        scheduler.schedule()
    while scheduler.in_flight[0].is_prefill:
        give_back(scheduler, scheduler.in_flight[0])
        scheduler.schedule()
    microbatch = scheduler.in_flight[0]
    assert {s.id for s in microbatch.sequences} == {"a", "b"}
    scheduler.finish(a)
    num_before = len(a.token_ids)
    assert scheduler.postprocess(microbatch, {b: [7]}) == [Advance(b, (7,))]
    assert len(a.token_ids) == num_before


def test_a_follow_up_takes_the_slot_whose_tokens_it_begins_with() -> None:
    """A conversation's second turn prefills only what is new; another owner's same prompt does not share."""
    scheduler = make_scheduler(num_tables=1)
    first = make_sequence("a", num_prompt=30, max_tokens=3)
    scheduler.add(first)
    run_all(scheduler)
    follow_up = Sequence("b", [*first.token_ids, 1, 2, 3], len(first.token_ids) + 3, 2)
    scheduler.add(follow_up)
    microbatch = take(scheduler)
    assert follow_up.num_reused_tokens == len(first.token_ids) - 1  # the last token's KV was never computed
    assert microbatch.rows[0].offset == follow_up.num_reused_tokens
    run_all(scheduler)
    stranger = Sequence("c", list(first.token_ids), len(first.token_ids), 2, owner="other")
    scheduler.add(stranger)
    scheduler.schedule()
    assert stranger.num_reused_tokens == 0


def test_prompts_that_begin_alike_step_the_shared_part_once() -> None:
    """A prompt that comes while another runs copies the common prefix that is still in flight."""
    scheduler = make_scheduler(num_tables=2, chunk=64)
    opening = list(range(40))
    scheduler.add(Sequence("a", [*opening, 100, 101], 42, 4))
    first = take(scheduler)
    assert first.copies == ()
    scheduler.add(Sequence("b", [*opening, 200, 201, 202], 43, 4))
    scheduler.add(Sequence("c", [*opening, 300, 301], 42, 4, owner="other"))
    second = take(scheduler)
    assert second.copies == (PrefixCopy(from_table=0, from_slot=0, to_slot=0, num_tokens=40),)
    assert [(row.offset, len(row.token_ids)) for row in second.rows] == [(40, 3)]
    log = run_all(scheduler)
    assert all(not microbatch.copies for microbatch in log)  # another owner's prompt shares nothing


def test_a_suspect_steps_alone_until_it_is_cleared() -> None:
    """While a suspect's rows are in flight no others are; afterwards all run together.

    A token alone does not clear it: whoever logs the token does.
    """
    scheduler = make_scheduler(num_tables=2, chunk=64)
    for index in range(3):
        scheduler.add(make_sequence(f"s{index}", num_prompt=40, max_tokens=5, first=1000 * index))
    suspect = make_sequence("suspect", num_prompt=40, max_tokens=5, first=9000)
    suspect.is_suspect = True
    scheduler.add(suspect)
    is_cleared_at = 0
    for _ in range(200):
        while scheduler.schedule():
            pass
        names = {sequence.id for microbatch in scheduler.in_flight for sequence in microbatch.sequences}
        assert not suspect.is_suspect or names == {"suspect"}
        if not scheduler.in_flight:
            break
        give_back(scheduler, scheduler.in_flight[0])
        if suspect.num_answer_tokens == 2 and suspect.is_suspect:
            suspect.is_suspect, is_cleared_at = False, suspect.num_answer_tokens
    assert is_cleared_at == 2
    assert not scheduler.has_work


def test_kept_tokens_never_exceed_their_limit() -> None:
    """The oldest kept KV is evicted first."""
    scheduler = make_scheduler(num_tables=1, kept=50)
    for index in range(4):
        scheduler.add(make_sequence(f"s{index}", num_prompt=20, first=1000 * index))
        run_all(scheduler)
        assert scheduler.slots.prefix_cache.num_tokens <= 50


def test_of_an_entry_that_is_too_long_the_beginning_is_kept() -> None:
    """A prompt above the limit, asked again, is read from there on; the oldest entry loses its end first."""
    scheduler = make_scheduler(num_tables=1, kept=8192, chunk=512)
    for name in ("long", "again"):
        sequence = make_sequence(name, num_prompt=9200, first=20_000)
        scheduler.add(sequence)
        run_all(scheduler)
        assert scheduler.slots.prefix_cache.num_tokens == 8192
    assert sequence.num_reused_tokens == 8192
    scheduler.add(make_sequence("short", num_prompt=100, max_tokens=1))
    run_all(scheduler)
    lengths = sorted(len(slot.kept_token_ids) for slot in scheduler.slots.tables[0].slots)
    assert lengths == [100, 8092]
    follower = make_sequence("follower", num_prompt=8500, first=20_000)
    scheduler.add(follower)
    run_all(scheduler)
    assert follower.num_reused_tokens == 8092


def test_a_full_budget_makes_requests_wait_and_then_serves_them() -> None:
    """With room for one row of 64 tokens, three sequences run one after the other."""
    scheduler = make_scheduler(num_tables=2, max_kv_tokens=64, kept=0)
    for name in "abc":
        scheduler.add(make_sequence(name, num_prompt=20, max_tokens=2))
    scheduler.schedule()
    assert (len(scheduler.running), len(scheduler.waiting)) == (1, 2)
    run_all(scheduler)
    assert not scheduler.has_work


@settings(max_examples=60, deadline=None)
@given(
    prompts=st.lists(st.tuples(st.integers(1, 200), st.integers(1, 30)), min_size=1, max_size=14),
    num_tables=st.integers(1, 4),
    max_rows=st.integers(1, 6),
    max_kv_tokens=st.sampled_from([512, 2048, 50_000]),
    cancelled=st.sets(st.integers(0, 13)),
    max_gathered=st.integers(0, 5),
)
def test_every_sequence_ends_and_no_token_is_stepped_twice(
    prompts: list[tuple[int, int]],
    num_tables: int,
    max_rows: int,
    max_kv_tokens: int,
    cancelled: set[int],
    max_gathered: int,
) -> None:
    """Whatever the mix: each row starts where its KV ends, the budget holds, and all that fit finish."""
    scheduler = make_scheduler(
        num_tables=num_tables, max_rows=max_rows, max_kv_tokens=max_kv_tokens, max_gathered=max_gathered
    )
    sequences = [make_sequence(f"s{i}", n, m, first=1000 * i) for i, (n, m) in enumerate(prompts)]
    max_row = most_tokens(1, max_kv_tokens)
    sequences = [sequence for sequence in sequences if sequence.max_total_tokens <= max_row]
    coming = sequences[::-1]
    kv = WrittenKV()
    for turn in range(5000):
        if coming and turn % 2 == 0:
            scheduler.add(coming.pop())
        while microbatch := scheduler.schedule():
            assert len(scheduler.in_flight) <= num_tables
            kv.step(microbatch)
            assert kv.num_tokens == scheduler.slots.num_kv_tokens <= max_kv_tokens
        if turn == 9:
            cancel(scheduler, sequences[: len(sequences) - len(coming)], cancelled)
        if scheduler.in_flight:
            give_back(scheduler, scheduler.in_flight[0])
        elif not coming:
            break
    assert not scheduler.has_work
    for index, sequence in enumerate(sequences):
        assert sequence.num_answer_tokens == sequence.max_tokens or index in cancelled


@given(st.integers(1, 40), st.integers(1, 5000))
def test_rounded_sizes_hold_what_they_round(num_rows: int, num_tokens: int) -> None:
    """Rounding never shrinks, and the padded size is their product."""
    assert round_rows(num_rows) >= num_rows
    assert round_tokens(num_tokens) >= num_tokens
    assert padded_tokens(num_rows, num_tokens) == round_rows(num_rows) * round_tokens(num_tokens)


def test_few_rows_are_one_group_and_more_are_spread() -> None:
    """Up to the limit all sequences share one table; later ones fill the others first."""
    scheduler = make_scheduler(num_tables=2, max_gathered=4)
    for number in range(8):
        scheduler.add(make_sequence(str(number), max_tokens=50, first=100 * number))
        while scheduler.schedule():
            pass
        give_back(scheduler, scheduler.in_flight[0])
        sizes = [table.num_running for table in scheduler.slots.tables]
        assert sizes == ([number + 1, 0] if number < 4 else [4, number - 3])


def test_a_prompt_gets_its_slot_when_it_is_due() -> None:
    """At most one chunk a table is admitted ahead; the rest waits, in order, for any table."""
    scheduler = make_scheduler(num_tables=2, chunk=16)
    sequences = [make_sequence(str(number), num_prompt=12, first=100 * number) for number in range(6)]
    for sequence in sequences:
        scheduler.add(sequence)
    assert scheduler.schedule()
    assert [sequence.is_running for sequence in sequences] == [True] * 3 + [False] * 3
    assert scheduler.num_open == 6
    run_all(scheduler)
    assert not any(sequence.is_running for sequence in sequences) and not scheduler.waiting


def test_a_long_kept_prefix_is_followed_to_its_table() -> None:
    """Its KV would have to be copied otherwise."""
    slots = SlotTables(SlotLimits(num_tables=2, max_rows=8, max_kv_tokens=100_000, max_kept_tokens=4096))
    first, second = make_sequence("a", num_prompt=300), make_sequence("b", num_prompt=300, first=5000)
    for sequence in (first, second):
        assert slots.admit(sequence)
        sequence.status = Status.RUNNING
    assert (first.table, second.table) == (0, 1)
    second.num_cached_tokens = second.num_proven_tokens = 300
    slots.release(second)
    short, long = (
        make_sequence("c", num_prompt=40, first=5000),
        make_sequence("d", num_prompt=300, first=5000),
    )
    assert slots.admit(short, is_gathered=True) and slots.admit(long, is_gathered=True)
    assert (short.table, short.num_reused_tokens) == (0, 0)
    assert (long.table, long.num_reused_tokens) == (1, 299)


def test_chats_with_one_system_prompt_keep_their_own_turns() -> None:
    """The second one copies the beginning instead of taking the first one's slot."""
    scheduler = make_scheduler(num_tables=2, kept=8192)
    chats = {name: [*range(100), *range(first, first + 200)] for name, first in (("a", 1000), ("b", 3000))}
    for turn, wanted in enumerate(({"a": 0, "b": 100}, {"a": 301, "b": 301}, {"a": 351, "b": 351})):
        for name, tokens in chats.items():
            sequence = make_sequence(f"{name}{turn}", num_prompt=len(tokens), max_tokens=2)
            sequence.token_ids[:] = tokens
            scheduler.add(sequence)
            run_all(scheduler)
            assert abs(sequence.num_reused_tokens - wanted[name]) <= 2
            chats[name] = [*tokens, *range(9000 + 100 * turn, 9050 + 100 * turn)]


def test_a_step_is_alone_only_while_nothing_else_can_come() -> None:
    """Not between the chunks of a prompt, nor beside a second row; so a stage may use the idle cores."""
    scheduler = make_scheduler(num_tables=2)
    scheduler.add(make_sequence("a", num_prompt=150, max_tokens=3))
    log = run_all(scheduler)
    assert [microbatch.is_alone for microbatch in log] == [False, False, False, True, True]
    for name in "bc":
        scheduler.add(make_sequence(name, max_tokens=3))
    assert not any(microbatch.is_alone for microbatch in run_all(scheduler)[:-1])


def test_a_slow_chunk_is_smaller_while_somebody_waits_for_it() -> None:
    """A prompt alone is read in whole chunks; beside an answer, in chunks of at most about 0.2 s."""
    limits = SchedulerLimits(
        max_in_flight=1,
        max_chunk_tokens=128,
        slots=SlotLimits(num_tables=1, max_rows=8, max_kv_tokens=100_000, max_kept_tokens=0),
        paces_chunks=True,
    )
    scheduler, sizes = Scheduler(limits), []
    scheduler.add(make_sequence("long", num_prompt=600, max_tokens=60))
    for turn in range(40):
        microbatch = take(scheduler)
        if microbatch.is_prefill:
            sizes.append(microbatch.num_tokens)
        give_back(scheduler, microbatch)
        scheduler.note_cost(microbatch, [1000.0, 2000.0 * (microbatch.num_tokens + 32)])
        if turn == 10:
            scheduler.add(make_sequence("late", num_prompt=300, max_tokens=60, first=5000))
    assert sizes[:5] == [128, 128, 128, 128, 88]
    assert sizes[5:] == [64, 64, 64, 64, 44]  # 200 ms / 2 ms - 32 = 68, in steps of 16


def test_chunks_shrink_with_the_context_that_they_see() -> None:
    """Tokens times context stay within a limit, down to 64 tokens; short prompts go whole."""
    scheduler = make_scheduler(num_tables=1, chunk=512)
    scheduler.limits = replace(scheduler.limits, max_chunk_scores=512 * 4096)
    scheduler.add(make_sequence("a", num_prompt=40_000, max_tokens=1))
    chunks = [(microbatch.rows[0].offset, microbatch.num_tokens) for microbatch in run_all(scheduler)]
    assert all((offset + width) * width <= 512 * 4096 or width <= 64 for offset, width in chunks)
    assert all(width == 512 for offset, width in chunks if offset + 512 <= 4096)
    assert {width for _, width in chunks[:-1]} == {512, 448, 384, 320, 256, 192, 128, 64}


@given(st.integers(1, 4096), st.integers(1, 1 << 20), st.sampled_from(["auto", "64", "2048"]))
def test_no_chunk_has_more_scores_than_the_plan_counts(budget: int, context: int, chunk: str) -> None:
    """Whatever the context: attention_bytes is of the longest one."""
    overrides = {"MAX_SEQUENCE_LENGTH": str(max(2, context)), "PREFILL_CHUNK_TOKENS": chunk}
    loaded = load_settings(overrides, root=Path("/nowhere"), environ={})
    shape = replace(make_model_shape((1,)), score_bytes=1)
    num_tokens = within_scores(budget, context, max_chunk_scores(loaded))
    assert NUM_SCORE_ARRAYS * num_tokens * context <= attention_bytes(loaded, shape)


def test_chunks_never_shrink_to_nothing() -> None:
    """However slow the machine, and not at all before anything was measured."""
    pace = ChunkPace()
    reads_all_experts = ChunkPace(64)
    reads_all_experts.note(128, 10_000_000)
    assert reads_all_experts.budget(256) == 64
    assert reads_all_experts.budget(48) == 48
    assert pace.budget(128) == 128
    pace.note(128, 1e9)
    assert pace.budget(128) == 16
    assert pace.budget(8) == 8


def test_a_chunk_stays_within_its_time_even_if_nothing_waits() -> None:
    """Else a slow machine lets a long prompt run into STEP_TIMEOUT, at each new try."""
    pace = ChunkPace(64, longest_us=12e6)
    assert pace.budget(256, is_waited_for=False) == 32
    pace.note(32, 6.4e6)  # 0.1 s a token
    assert pace.budget(256, is_waited_for=False) == 80
    for _ in range(NUM_PACED_CHUNKS):
        pace.note(32, 64e6)
    assert pace.budget(256, is_waited_for=False) == pace.budget(256) == 16
    assert ChunkPace().budget(256, is_waited_for=False) == 256


def test_a_stall_or_a_first_chunk_does_not_shrink_the_next_ones() -> None:
    """A size's first chunk may have compiled kernels, and one chunk in three may have stalled."""
    pace = ChunkPace()
    usual = 100_000.0 / (256 + 32)  # microseconds a token
    for number, (num_tokens, stall_us) in enumerate(
        [(256, 300_000), (256, 0), (32, 300_000), (32, 0), (256, 0), (32, 300_000), (256, 0), (256, 0)]
    ):
        pace.note(num_tokens, usual * (num_tokens + 32) + stall_us)
        assert not number or pace.budget(512) == 512 // 16 * 16
