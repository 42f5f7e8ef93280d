"""Drafts come from the text itself and are made where they save time."""

from __future__ import annotations

from distributed.engine.drafting import (
    MAX_DRAFTS,
    MAX_MEASURED,
    MIN_MEASURED,
    STALE_STEPS,
    PromptLookup,
    StepCosts,
)
from distributed.engine.sequence import Sequence

QUOTED = [5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22]


def make_sequence(tokens: list[int], max_tokens: int = 50) -> Sequence:
    return Sequence("a", list(tokens), len(tokens), max_tokens)


def measured(costs: dict[int, float]) -> PromptLookup:
    drafter = PromptLookup()
    for num_tokens, cost in costs.items():
        for _ in range(1 + MIN_MEASURED):
            drafter.note_cost(num_tokens, cost)
    return drafter


def lengths(drafter: PromptLookup, num_steps: int, slow: dict[int, float]) -> list[int]:
    """Drafts of each step where every step costs 10 ms, but those numbered in `slow`."""
    sequence, found = make_sequence([*QUOTED, 5, 6, 7]), []
    for number in range(num_steps):
        found.append(len(drafter.propose([sequence])[0]))
        drafter.note_cost(1 + found[-1], slow.get(number, 10_000.0))
    return found


def test_tokens_that_followed_before_are_drafted() -> None:
    """The tokens after the latest occurrence of the same few tokens."""
    drafter = PromptLookup()
    sequence = make_sequence([*QUOTED, 1, 2, 5, 6, 7])
    assert drafter.propose([sequence]) == [tuple(QUOTED[3 : 3 + MAX_DRAFTS])]
    assert drafter.propose([make_sequence([1, 2, 3, 4, 5])]) == [()]


def test_drafts_follow_the_answer_as_it_grows() -> None:
    """Tokens since the last draft are indexed as well."""
    drafter = PromptLookup()
    sequence = make_sequence([1, 2, 3])
    assert drafter.propose([sequence]) == [()]
    sequence.extend([4, 1, 2, 3])
    assert drafter.propose([sequence])[0][:1] == (4,)


def test_no_draft_goes_beyond_the_end_of_the_answer() -> None:
    """A draft token whose draw would be over max_tokens is a waste."""
    drafter = PromptLookup()
    sequence = make_sequence([*QUOTED, 5, 6, 7], max_tokens=4)
    assert drafter.propose([sequence]) == [(8, 9, 10)]
    sequence = make_sequence([*QUOTED, 5, 6, 7], max_tokens=1)
    assert drafter.propose([sequence]) == [()]


def test_dear_steps_are_not_lengthened() -> None:
    """There are no drafts where a step of many tokens costs as much as the tokens one by one."""
    sequence = make_sequence([*QUOTED, 5, 6, 7])
    assert measured({2**size: 2.0**size for size in range(5)}).propose([sequence]) == [()]
    flat = measured({2**size: 100.0 + size for size in range(5)})
    assert len(flat.propose([sequence])[0]) == MAX_DRAFTS


def test_a_sequence_whose_drafts_are_rejected_gets_none_for_a_while() -> None:
    """After rejections there are no drafts; some tokens later it tries again."""
    drafter = measured({1: 100.0, 2: 130.0, 4: 140.0, 16: 200.0})
    sequence = make_sequence([*QUOTED, 5, 6, 7])
    for _ in range(4):
        draft = drafter.propose([sequence])[0]
        if draft:
            drafter.learn(sequence, len(draft), 0)
    assert drafter.propose([sequence]) == [()]
    sequence.extend([*QUOTED, *QUOTED][:33])
    assert drafter.propose([sequence])[0]


def test_costs_not_measured_yet_are_tried() -> None:
    """An unknown size counts as the next smaller one that is known, and its first measurement is dropped."""
    costs = StepCosts()
    assert costs.estimate(8) == costs.estimate(1)
    for cost in (900_000.0, 100.0, 100.0):
        costs.note(1, cost)
    assert costs.estimate(16) == costs.estimate(1) == 100.0
    for cost in (900_000.0, 900.0, 900.0):
        assert costs.estimate(16) == 100.0
        costs.note(16, cost)
    assert costs.estimate(16) == 900.0
    assert costs.estimate(2) == 100.0
    for _ in range(MAX_MEASURED):
        costs.note(16, 400.0)
    assert costs.estimate(16) == 400.0


def test_one_stall_does_not_end_drafts() -> None:
    """Wherever it falls, a step of 300 ms among those of 10 costs at most a few steps without drafts."""
    for place in range(12):
        found = lengths(PromptLookup(), 30, {place: 300_000.0})
        assert found[-10:] == [MAX_DRAFTS] * 10
        assert found.count(0) <= 1 + 2 * MIN_MEASURED


def test_a_size_that_was_slow_for_a_while_is_tried_again() -> None:
    """A machine may have been busy with other work: its old measurements do not count for ever."""
    drafter = PromptLookup()
    first = lengths(drafter, 20, dict.fromkeys(range(12), 300_000.0) | dict.fromkeys(range(3, 6), 10_000.0))
    assert first[-1] == 0
    assert lengths(drafter, STALE_STEPS + 20, {})[-10:] == [MAX_DRAFTS] * 10


def test_histories_are_dropped_with_their_sequences() -> None:
    """A finished sequence leaves no history."""
    drafter = PromptLookup()
    sequence = make_sequence(QUOTED)
    drafter.propose([sequence])
    drafter.forget(sequence)
    assert not drafter._histories
