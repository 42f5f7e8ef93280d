"""Hybrid models in the scheduler: states are stepped without padding, never cut, reused where they stand."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distributed.backends.stage import Stage
from distributed.engine.chunks import best_fill
from distributed.self_test.seeded_models import make_model_folder
from tests.fakes.family_configs import CONFIGS
from tests.services.local_ring import LocalRing, answer, load_stages
from tests.services.scheduling import make_scheduler, make_sequence, run_all

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


def test_a_cancelled_row_leaves_nothing_behind(stages: list[Stage]) -> None:
    """Its state may be ahead of what is proven; the next one in the slot starts from zeros."""
    ring = make_ring(stages, chunk=16, kept=4096)
    cancelled = ring.ask(prompts_of(1, seed=5)[0], 50)
    ring.run(num_steps=9)
    ring.scheduler.schedule()
    ring.scheduler.finish(cancelled)
    after = ring.ask([*cancelled.token_ids, 3, 4], 10)
    ring.run()
    assert after.num_reused_tokens == 0
    assert answer(after) == solo(stages, after.token_ids[: after.num_prompt_tokens], 10)


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
