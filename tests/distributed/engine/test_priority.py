"""Requests of the last priority give way: they wait behind all others, rest and give up their rows."""

from __future__ import annotations

from dataclasses import replace as replace_limits
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from distributed.engine.scheduler import Scheduler
from distributed.engine.sequence import Microbatch, Sequence, Status
from distributed.planning.kv_sizes import most_tokens
from spool import Request
from tests.fakes.checkpoints import make_checkpoint
from tests.services.engine_in_process import EngineInProcess
from tests.services.scheduling import WrittenKV, cancel, give_back, make_scheduler, make_sequence, run_all

PROMPTS = [[(7 * i + 13 * j) % 250 for j in range(5 + 9 * i)] for i in range(4)]


def make_batch(scheduler: Scheduler, num_rows: int, num_prompt: int = 10) -> list[Sequence]:
    """Fill rows with sequences that yield, each some tokens into its answer."""
    batch = [make_sequence(f"batch {i}", num_prompt + i, 200, first=1000 * i) for i in range(num_rows)]
    for sequence in batch:
        sequence.yields = True
        scheduler.add(sequence)
    while not all(sequence.num_answer_tokens > 2 for sequence in batch):
        launch(scheduler)
        give_back(scheduler, scheduler.in_flight[0])
    return batch


def launch(scheduler: Scheduler) -> list[Microbatch]:
    """Launch all that is ready."""
    return list(iter(scheduler.schedule, None))


def test_a_row_that_yields_goes_to_a_prompt_that_does_not() -> None:
    """The one with the least KV to make again. The prompt is next, and before any other that yields."""
    scheduler = make_scheduler(num_tables=2, max_rows=2)
    batch = make_batch(scheduler, 4)
    assert (scheduler.num_free, scheduler.num_claimable) == (0, 4)
    urgent = make_sequence("urgent", 20, first=9000)
    scheduler.add(urgent)
    give_back(scheduler, scheduler.in_flight[0])
    assert launch(scheduler)[0].sequences == [urgent]
    assert [sequence.status for sequence in batch] == [Status.WAITING] + [Status.RUNNING] * 3
    assert (scheduler.num_free, scheduler.num_claimable, scheduler.num_preemptions) == (-1, 3, 0)
    run_all(scheduler)
    assert all(sequence.num_answer_tokens == sequence.max_tokens for sequence in (urgent, *batch))


def test_rows_that_yield_rest_while_a_prompt_is_left_to_step() -> None:
    """Its chunks follow each other; behind the last one the others go on, so no stage idles."""
    scheduler = make_scheduler(num_tables=2, chunk=64)
    make_batch(scheduler, 4)
    scheduler.add(urgent := make_sequence("urgent", 400, first=9000))
    while urgent.num_unscheduled_tokens:
        give_back(scheduler, scheduler.in_flight[0])
        sizes = [(microbatch.is_prefill, microbatch.sequences) for microbatch in launch(scheduler)]
        assert sizes[:1] == [(True, [urgent])]
    while not urgent.num_answer_tokens:
        give_back(scheduler, scheduler.in_flight[0])
        launch(scheduler)
        assert len(scheduler.in_flight) == 2


def test_a_prompt_passes_those_that_are_being_read_and_yield() -> None:
    """They are no reason to wait for a slot, and their next chunks come after its own."""
    scheduler = make_scheduler(num_tables=1, chunk=16)
    for number in range(3):
        scheduler.add(each := make_sequence(f"{number}", 200, first=1000 * number))
        each.yields = True
    launch(scheduler)
    scheduler.add(urgent := make_sequence("urgent", 40, first=9000))
    while urgent.num_unscheduled_tokens:
        give_back(scheduler, scheduler.in_flight[0])
        assert [microbatch.sequences for microbatch in launch(scheduler)] == [[urgent]]
    run_all(scheduler)


def test_the_last_place_in_flight_is_not_for_what_yields() -> None:
    """Neither for its prompts nor for its rows: a new prompt waits for all that is in flight."""
    scheduler = make_scheduler(num_tables=2, max_rows=4)
    scheduler.limits = replace_limits(scheduler.limits, max_in_flight=3, max_yielding_in_flight=2)
    make_batch(scheduler, 4)
    scheduler.add(late := make_sequence("late", 300, first=8000))
    late.yields = True
    kinds = set()
    while late.num_unscheduled_tokens:
        give_back(scheduler, scheduler.in_flight[0])
        launch(scheduler)
        kinds.add(tuple(microbatch.is_prefill for microbatch in scheduler.in_flight))
    assert kinds == {(False, False), (False, True), (True, False)}
    scheduler.add(urgent := make_sequence("urgent", 30, first=9000))
    assert [microbatch.sequences for microbatch in launch(scheduler)] == [[urgent]]
    run_all(scheduler)


def test_a_row_that_yields_goes_first_where_kv_runs_short() -> None:
    """Though it is the oldest; it ends when the other has ended."""
    scheduler = make_scheduler(num_tables=1, max_kv_tokens=2048, kept=0)
    old, young = (make_sequence(name, 300, 900, first=5000 * i) for i, name in enumerate(("old", "young")))
    old.yields = True
    for sequence in (old, young):
        scheduler.add(sequence)
        launch(scheduler)
    assert len(scheduler.running) == 2
    run_all(scheduler)
    assert (old.num_preemptions > 0, young.num_preemptions) == (True, 0)
    assert old.num_answer_tokens == old.max_tokens


def test_nothing_is_given_up_for_a_prompt_that_would_not_fit() -> None:
    """It waits for the rows that do not yield; the others go on meanwhile."""
    scheduler = make_scheduler(num_tables=1, max_kv_tokens=2048, kept=0)
    scheduler.add(old := make_sequence("old", 500, 30, first=5000))
    (young,) = make_batch(scheduler, 1)
    scheduler.add(make_sequence("urgent", 1400, first=9000))
    while old.is_running:
        launch(scheduler)
        give_back(scheduler, scheduler.in_flight[0])
        assert young.num_preemptions == 0
    run_all(scheduler)
    assert not scheduler.has_work


@settings(max_examples=100, deadline=None)
@given(
    prompts=st.lists(
        st.tuples(st.integers(1, 300), st.integers(1, 60), st.booleans(), st.integers(0, 8)),
        min_size=2,
        max_size=14,
    ),
    num_tables=st.integers(1, 3),
    max_rows=st.integers(1, 4),
    max_kv_tokens=st.sampled_from([512, 1024, 2048, 50_000]),
    kept=st.sampled_from([0, 700]),
    cancelled=st.sets(st.integers(0, 13), max_size=3),
    suspects=st.sets(st.integers(0, 13), max_size=2),
)
def test_whatever_yields_all_end_and_no_other_waits_for_it(
    prompts: list[tuple[int, int, bool, int]],
    num_tables: int,
    max_rows: int,
    max_kv_tokens: int,
    kept: int,
    cancelled: set[int],
    suspects: set[int],
) -> None:
    """Any mix: the KV is right and within the budget, each class keeps its order, rows go to the first."""
    scheduler = make_scheduler(
        num_tables=num_tables, max_rows=max_rows, max_kv_tokens=max_kv_tokens, kept=kept
    )
    scheduler.limits = replace_limits(
        scheduler.limits, max_in_flight=num_tables + 1, max_yielding_in_flight=num_tables
    )
    room, coming = most_tokens(1, max_kv_tokens), []
    for i, (num_prompt, max_tokens, yields, pause) in enumerate(prompts):
        sequence = make_sequence(f"{i}", num_prompt, max_tokens, first=1000 * i)
        sequence.yields, sequence.is_suspect = yields, i in suspects
        if sequence.max_total_tokens <= room:
            coming += [(pause, sequence)]
    sequences = [sequence for _, sequence in coming]
    admitted, due = dict[Sequence, None](), 0
    kv = WrittenKV()
    for turn in range(20_000):
        while coming and turn >= due:
            pause, sequence = coming.pop(0)
            due = turn + pause
            scheduler.add(sequence)
        step_all(scheduler, kv)
        admitted |= dict.fromkeys(scheduler.running)
        if turn == 20:
            cancel(scheduler, sequences[: len(sequences) - len(coming)], cancelled)
        if not scheduler.has_work and not coming:
            break
    assert not scheduler.has_work
    for yields in (False, True):
        order = [sequences.index(sequence) for sequence in admitted if sequence.yields is yields]
        assert order == sorted(order)
    for index, sequence in enumerate(sequences):
        assert sequence.num_answer_tokens == sequence.max_tokens or index in cancelled


def step_all(scheduler: Scheduler, kv: WrittenKV) -> None:
    """Launch all that is ready and take one back: none that yields is stepped or kept in another's way."""
    while microbatch := scheduler.schedule():
        kv.step(microbatch)
        assert kv.num_tokens == scheduler.slots.num_kv_tokens <= scheduler.limits.slots.max_kv_tokens
        is_late = any(each.is_prefilling and not each.yields for each in scheduler.running)
        assert not (is_late and any(each.can_yield for each in microbatch.sequences))
    first = next((each for each in scheduler.waiting if not each.yields), None)
    if first is not None and scheduler._is_due(first) and any(each.can_yield for each in scheduler.running):
        assert not scheduler.slots.could_fit(first, counts_yielding=False)
    if scheduler.in_flight:
        for sequence in give_back(scheduler, scheduler.in_flight[0]):
            sequence.is_suspect = False


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("models") / "tiny-llama", "llama")


def last(service: EngineInProcess, prompt: list[int], **params: Any) -> Request:
    """A request of the last priority."""
    return replace(service.request(prompt, **params), priority=9)


FEW_ROWS: dict[str, Any] = {"microbatches": 2, "max_rows_per_microbatch": 2, "poll_interval": 50}


def test_a_full_ring_claims_and_answers_a_request_at_once(llama: Path, tmp_path: Path) -> None:
    """No more of the last priority are claimed meanwhile; those that gave way have their own tokens."""
    with EngineInProcess(tmp_path, llama, 2, **FEW_ROWS) as service:
        rules = {"max_tokens": 40, "ignore_eos": True, "temperature": 0.8}
        batch = [last(service, PROMPTS[i % 4], seed=i, **rules) for i in range(7)]
        alone = [service.ask(replace(each, id=f"{i:032x}"))[0] for i, each in enumerate(batch)]
        service.submit(*batch)
        service.run_until(lambda: all(len(service.records(each)) > 5 for each in batch[:4]))
        urgent = [service.request(prompt, max_tokens=4, ignore_eos=True) for prompt in PROMPTS[:3]]
        start = service.clock.now
        service.submit(*urgent)
        service.results(*urgent)
        assert service.clock.now - start < 0.1
        assert [len(service.records(each)) > 0 for each in batch] == [True] * 4 + [False] * 3
        results = service.results(*batch)
    assert [each.token_ids for each in results] == [each.token_ids for each in alone]


def test_a_prompt_that_comes_during_a_step_is_launched_right_behind_it(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 0 listens before it launches, where another microbatch keeps the other stages at work."""
    with EngineInProcess(tmp_path, llama, 2, **FEW_ROWS) as service:
        batch = [last(service, prompt, max_tokens=40, ignore_eos=True) for prompt in PROMPTS]
        service.submit(*batch)
        service.run_until(lambda: all(service.records(each) for each in batch))
        urgent, finish = service.request(PROMPTS[0]), service.stages[0].finish

        def finish_and_submit(*args: Any) -> None:
            finish(*args)
            monkeypatch.undo()
            service.submit(urgent)

        monkeypatch.setattr(service.stages[0], "finish", finish_and_submit)
        num_before = service.scheduler.in_flight[-1].number
        service.step()
        after = [each for each in service.scheduler.in_flight if each.number > num_before]
        assert [sequence.id for sequence in after[0].sequences] == [urgent.id]


@pytest.mark.parametrize("num_turns", range(1, 12, 2))
def test_a_kill_while_a_row_is_given_up_loses_nothing(llama: Path, tmp_path: Path, num_turns: int) -> None:
    """Every answer goes on after its log, with the tokens that it has alone, exactly once."""
    with EngineInProcess(tmp_path, llama, 2, **FEW_ROWS) as service:
        rules = {"max_tokens": 30, "ignore_eos": True, "temperature": 0.8}
        batch = [last(service, PROMPTS[i % 4], seed=i, **rules) for i in range(6)]
        urgent = [service.request(PROMPTS[i], seed=9 + i, **rules) for i in range(3)]
        requests = [*batch, *urgent]
        alone = [service.ask(replace(each, id=f"{i:032x}"))[0] for i, each in enumerate(requests)]
        service.submit(*batch)
        service.run_until(lambda: all(service.records(each) for each in batch[:4]))
        service.submit(*urgent)
        for _ in range(num_turns):
            service.step()
        assert any(sequence.num_preemptions for sequence in service.scheduler.waiting)
        logged = [service.records(request) for request in requests]
        service.kill()
        service.start()
        assert [service.records(request) for request in requests] == logged
        results = service.results(*requests)
    assert [(each.token_ids, each.text) for each in results] == [
        (each.token_ids, each.text) for each in alone
    ]


def test_a_stop_string_ends_an_answer_whose_row_was_just_given_up(llama: Path, tmp_path: Path) -> None:
    """The text shows the end only after the row has gone; the sequence does not run again."""
    rules = {"max_tokens": 40, "ignore_eos": True}
    two_rows: dict[str, Any] = {"microbatches": 2, "max_rows_per_microbatch": 1, "poll_interval": 50}
    with EngineInProcess(tmp_path, llama, 2, **two_rows) as service:
        (whole,) = service.ask(service.request(PROMPTS[1], **rules))
        stop = whole.text[12:15]
        for num_turns in range(4, 44):
            batch = [last(service, PROMPTS[3], **rules), last(service, PROMPTS[1], stop=(stop,), **rules)]
            service.submit(*batch)
            for _ in range(num_turns):
                service.step()
            service.submit(urgent := service.request(PROMPTS[0], max_tokens=2))
            _, cut, _ = service.results(*batch, urgent)
            assert (cut.finish_reason, cut.text) == ("stop", whole.text[: whole.text.index(stop)])
            assert not service.scheduler.has_work
