"""Hybrid models in the scheduler: states are stepped without padding, never cut, reused where they stand."""

from __future__ import annotations

from pathlib import Path
from random import Random

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distributed.backends.stage import Stage
from distributed.engine.chunks import best_fill
from distributed.engine.prefix_cache import TAIL_TOKENS
from distributed.planning.step import Clear
from distributed.self_test.seeded_models import make_model_folder, write_weights
from tests.fakes.checkpoints import read_weights
from tests.fakes.family_configs import CONFIGS
from tests.services.local_ring import LocalRing, answer, load_stages
from tests.services.scheduling import give_back, make_scheduler, make_sequence, run_all, take

ROW_TOKENS = 40


@pytest.fixture(scope="module", params=["lfm2", "qwen3_next"])
def stages(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Stage]:
    """Two stages of a tiny model."""
    folder = make_model_folder(tmp_path_factory.mktemp("tiny") / request.param, CONFIGS[request.param])
    return load_stages(folder, (1, 3))


def row_tokens(stages: list[Stage]) -> int:
    """What the states of a row take, in tokens of KV."""
    token_bytes = max(stage.kv_bytes_per_token for stage in stages)
    return -(-max(stage.state_bytes_per_row for stage in stages) // token_bytes)


def make_ring(stages: list[Stage], **shape: int) -> LocalRing:
    return LocalRing(stages, row_tokens=row_tokens(stages), **shape)


def prompts_of(number: int, seed: int = 0) -> list[list[int]]:
    chance = Random(seed)
    return [[chance.randrange(250) for _ in range(chance.randrange(2, 90))] for _ in range(number)]


def solo(stages: list[Stage], prompt: list[int], num_tokens: int) -> list[int]:
    ring = make_ring(stages)
    sequence = ring.ask(prompt, num_tokens)
    ring.run()
    return answer(sequence)


def test_rows_shorter_than_a_window_take_less(tmp_path: Path) -> None:
    """Many at once, within a budget that whole windows exceed, answer as with the KV of all tokens."""
    window = 400
    folder = make_model_folder(tmp_path / "tiny", {**CONFIGS["gemma3_text"], "sliding_window": window})
    stages, whole = (load_stages(folder, (1, 3), keeps_windows=keeps) for keeps in (True, False))
    prompts = prompts_of(4)
    states = row_tokens(stages)
    budget = 4 * (128 + states * 128 // window + 1)
    assert budget < 4 * states
    ring = LocalRing(stages, row_tokens=states, window=window, max_kv_tokens=budget, chunk=32)
    asked = [ring.ask(prompt, 30) for prompt in prompts]
    ring.run()
    assert not ring.scheduler.num_preemptions
    for sequence, prompt in zip(asked, prompts, strict=True):
        alone = LocalRing(whole)
        wanted = alone.ask(prompt, 30)
        alone.run()
        assert answer(sequence) == answer(wanted)


def test_many_at_once_answer_as_alone(stages: list[Stage]) -> None:
    """Prompts of unlike length in chunks, rows that join and leave, and so little memory that some wait."""
    prompts = [*prompts_of(4), *[[(7 * i + 31 * j) % 250 for i in range(30 + 9 * j)] for j in range(4)]]
    ring = make_ring(stages, num_tables=2, max_kv_tokens=640 + 4 * row_tokens(stages), chunk=32)
    asked = [ring.ask(prompt, 80) for prompt in prompts]
    ring.run()
    assert ring.scheduler.num_preemptions
    alone = {each: solo(stages, prompt, each.max_tokens) for each, prompt in zip(asked, prompts, strict=True)}
    assert {each: answer(each) for each in asked} == alone


def test_a_chat_goes_on_where_its_state_stands(stages: list[Stage]) -> None:
    """All tokens and more: only the rest is stepped, by another from a copy; all but the last ones: anew."""
    prompt, more = prompts_of(1, seed=3)[0], [5, 6, 7, 8]
    ring = make_ring(stages, chunk=16, kept=4096)
    first = ring.ask(prompt, 12)
    ring.run()
    told = list(first.token_ids)
    longer = [ring.ask([*told, *more, last], 10) for last in (9, 10)]
    ring.run()
    assert [each.num_reused_tokens for each in longer] == [len(told) - 1] * 2
    shorter = ring.ask([*told[:-4], *more], 10)
    ring.run()
    assert shorter.num_reused_tokens == 0
    for each in (*longer, shorter):
        assert answer(each) == solo(stages, each.token_ids[: each.num_prompt_tokens], 10)


def long_prompt(seed: int, num_tokens: int = 150) -> list[int]:
    chance = Random(seed)
    return [chance.randrange(250) for _ in range(num_tokens)]


def test_a_prompt_is_kept_up_to_shortly_before_its_end(stages: list[Stage]) -> None:
    """A template may leave the reasoning out that came before: the next turn begins with the prompt alone."""
    ring = make_ring(stages, chunk=48, kept=4096)
    first = ring.ask(long_prompt(1), 8)
    ring.run()
    told = first.token_ids[:147]
    second = ring.ask([*told, 1, 2, 3], 8)
    ring.run()
    assert second.num_reused_tokens == 150 - TAIL_TOKENS
    assert answer(second) == solo(stages, [*told, 1, 2, 3], 8)


def test_a_common_beginning_is_stepped_twice_and_then_copied(stages: list[Stage]) -> None:
    """The second chat with one system prompt keeps it where it parts; all later ones copy it."""
    system = long_prompt(2, 100)
    chats = [[*system, *long_prompt(seed, 70)] for seed in range(3, 8)]
    ring = make_ring(stages, chunk=48, kept=4096)
    asked = []
    for chat in chats:
        asked.append(ring.ask(chat, 8))
        ring.run()
    assert [each.num_reused_tokens for each in asked] == [0, 0, 64, 64, 64]
    for each, chat in zip(asked, chats, strict=True):
        assert answer(each) == solo(stages, chat, 8)


def test_choices_of_one_prompt_step_it_once(stages: list[Stage]) -> None:
    """The others wait until its state is copied, and step what comes behind."""
    ring = make_ring(stages, chunk=48, kept=4096)
    prompt = long_prompt(9)
    asked = [ring.ask(prompt, 8) for _ in range(4)]
    ring.run()
    assert [each.num_reused_tokens for each in asked] == [0, *[150 - TAIL_TOKENS] * 3]
    assert {tuple(answer(each)) for each in asked} == {tuple(solo(stages, prompt, 8))}


def test_what_is_not_proven_finite_is_not_taken_over() -> None:
    """A prompt is cancelled behind its copy: the next one steps all of it."""
    scheduler = make_scheduler(num_tables=1, chunk=64, row_tokens=ROW_TOKENS)
    first = make_sequence("a", num_prompt=150)
    scheduler.add(first)
    for _ in range(3):
        give_back(scheduler, take(scheduler))
    last = take(scheduler)
    assert [copy.num_tokens for copy in last.copies] == [150 - TAIL_TOKENS]
    scheduler.finish(first)
    give_back(scheduler, last)
    second = make_sequence("b", num_prompt=160)
    scheduler.add(second)
    scheduler.schedule()
    assert second.slot != last.copies[0].to_slot


def test_a_copy_that_is_not_proven_is_cleared_where_its_place_is_taken() -> None:
    """A mask hides the KV after a short row's end, but 0 x NaN is NaN."""
    scheduler = make_scheduler(num_tables=1, max_rows=2, chunk=64, row_tokens=ROW_TOKENS)
    scheduler.add(make_sequence("a", num_prompt=150))
    for _ in range(3):
        give_back(scheduler, take(scheduler))
    last = take(scheduler)
    (copy,) = last.copies
    second = make_sequence("b", first=500)
    scheduler.add(second)
    assert scheduler.schedule() is None and second.slot == copy.to_slot
    give_back(scheduler, last)
    while second not in (microbatch := take(scheduler)).sequences:
        give_back(scheduler, microbatch)
    assert microbatch.clears == (Clear(copy.to_slot, 0, copy.num_tokens),)


def test_a_cancelled_row_leaves_nothing_behind(stages: list[Stage]) -> None:
    """Its state may be ahead of what is proven; the next one in the slot starts from zeros."""
    ring = make_ring(stages, chunk=16, kept=4096)
    cancelled = ring.ask(prompts_of(1, seed=5)[0][:60], 50)
    ring.run(num_steps=9)
    ring.scheduler.schedule()
    ring.scheduler.finish(cancelled)
    after = ring.ask([*cancelled.token_ids, 3, 4], 10)
    ring.run()
    assert after.num_reused_tokens == 0
    assert answer(after) == solo(stages, after.token_ids[: after.num_prompt_tokens], 10)


def test_numbers_that_are_not_finite_stay_in_their_row(tmp_path: Path) -> None:
    """A prompt that overflows fails alone, whatever was copied of it; rows beside and after it are sound."""
    folder = make_model_folder(tmp_path / "poisoned", CONFIGS["qwen3_next"])
    weights, name = read_weights(folder), "model.embed_tokens.weight"
    weights[name] = mx.where(mx.arange(len(weights[name]))[:, None] == 255, mx.nan, weights[name])
    write_weights(folder, weights)
    stages = load_stages(folder, (1, 3))
    ring = make_ring(stages, chunk=48, kept=4096, max_rows=4)
    sound = [long_prompt(seed) for seed in (1, 2)]
    poisoned = ring.ask([*sound[0][:70], 255, *sound[1][:70]], 8)
    asked = [ring.ask(prompt, 8) for prompt in sound]
    ring.run()
    asked += [ring.ask(prompt, 8) for prompt in (*reversed(sound), long_prompt(3), sound[0][:100])]
    ring.run()
    assert ring.failed == [poisoned]
    for each in asked:
        assert answer(each) == solo(stages, each.token_ids[: each.num_prompt_tokens], 8)


@given(st.lists(st.integers(1, 99), min_size=1, max_size=16), st.integers(1, 128))
def test_chunks_have_no_padding(num_left: list[int], budget: int) -> None:
    """Every row of a chunk has all of its columns, within the budget."""
    num_rows, width = best_fill(num_left, budget, is_level=True)
    assert 1 <= width <= min(num_left[:num_rows])
    assert num_rows * width <= budget


def test_states_count_against_the_budget() -> None:
    """A row costs its tokens and its states; tables stay within the budget."""
    scheduler = make_scheduler(num_tables=1, max_kv_tokens=4 * (64 + ROW_TOKENS), row_tokens=ROW_TOKENS)
    for name in "abcdefgh":
        scheduler.add(make_sequence(name))
    scheduler.schedule()
    assert (scheduler.slots.tables[0].num_rows, len(scheduler.running)) == (4, 4)
    assert scheduler.slots.num_kv_tokens == 4 * (64 + ROW_TOKENS)
    run_all(scheduler)


@pytest.mark.parametrize(("most", "kept"), [(13, 13), (12, 0)])
def test_an_entry_is_kept_whole_or_not_at_all(most: int, kept: int) -> None:
    """A state cannot be cut to what there is room for."""
    scheduler = make_scheduler(num_tables=1, kept=most, row_tokens=ROW_TOKENS)
    scheduler.add(make_sequence("a", num_prompt=10, max_tokens=4))
    run_all(scheduler)
    assert scheduler.slots.prefix_cache.num_tokens == kept
