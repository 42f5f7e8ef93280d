"""The oracle of chaos and its measures as data in, data out, and the count of `demo --kill`."""

import random
import uuid
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from chaos.flatness import compare_thirds, count_files
from chaos.forms import FORMS, find_fault
from chaos.found import Found
from chaos.journal import Entry, Question
from chaos.killer import Kill
from chaos.oracle import VERDICTS, judge
from chaos.plan import make_question
from chaos.report import recovery_times
from cluster.commands.kill_demo import count_faults
from spool import EntryName, Result, TokenLogprob, Usage

ID, OTHER = uuid.UUID(int=7).hex, uuid.UUID(int=8).hex
QUESTIONS = {0: Question(0, {}, (5, 6, 7))}
RESULT = Result(ID, "m", "abc", (5, 6, 7), "length", Usage(1, 3, 0), {}, None, 1.0)
TOKENS = [(0, 5), (1, 6), (2, 7)]
ENTRY = Entry(0, "stream", "key", 0.0, 0, [ID], TOKENS, num_connections=2, result={"text": "abc"})
make_entry, make_result = partial(replace, ENTRY), partial(structs.replace, RESULT)


def make_found(*results: Result, **members: Any) -> Found:
    return Found({result.id: result for result in results}, **members)


def find(entry: Entry, found: Found) -> dict[str, int]:
    """What the oracle counts of one entry."""
    verdict = judge([entry], QUESTIONS, found)
    counts = {what: number for what, number in verdict.counts.items() if number}
    assert verdict.is_good == (not counts.keys() & set(VERDICTS))
    return counts


GOOD = make_found(RESULT)
POISONED = make_result(finish_reason="error", error={"code": "poison"})


@pytest.mark.parametrize(
    ("entry", "found", "counted"),
    [
        (make_entry(), GOOD, {}),
        (make_entry(ids=[], result=None), make_found(), {}),
        (make_entry(), make_found(), {"lost": 1}),
        (make_entry(result=None), GOOD, {"lost": 1}),
        (make_entry(tokens=[(0, 5), (2, 7)]), GOOD, {"lost": 1}),
        (make_entry(trouble=["404 for an accepted id"]), GOOD, {"lost": 1}),
        (make_entry(), make_found(make_result(), damaged=("bad/x",)), {"lost": 1}),
        (make_entry(tokens=[(0, 5), (0, 5), (1, 6), (2, 7)]), GOOD, {"doubled": 1}),
        (make_entry(ids=[OTHER, ID]), GOOD, {"doubled": 1}),
        (make_entry(), make_found(make_result(), make_result(id=OTHER)), {"doubled": 1}),
        (make_entry(), make_found(RESULT, make_result(id=OTHER), id_of_key={"key": OTHER}), {"doubled": 1}),
        (make_entry(tokens=[(0, 5), (1, 9), (2, 7)]), GOOD, {"contradicted": 1}),
        (make_entry(result={"text": "other"}), GOOD, {"contradicted": 1}),
        (make_entry(num_resets=1), GOOD, {"contradicted": 1, "resets": 1}),
        (make_entry(num_resets=1, tokens_before_reset=[(0, 4)]), GOOD, {"contradicted": 2, "resets": 1}),
        (make_entry(), make_found(make_result(finish_reason="cancelled")), {"condemned": 1}),
        (make_entry(), make_found(POISONED), {"condemned": 1, "poison": 1}),
        (make_entry(tokens=[(0, 5)]), make_found(make_result(token_ids=(5, 8))), {"other_text": 1}),
    ],
)
def test_the_oracle_finds_each_fault(entry: Entry, found: Found, counted: Mapping[str, int]) -> None:
    """Each kind of broken promise is counted, and nothing else is."""
    assert find(entry, found) == counted


GONE = make_entry(kind="gone", ids=[], tokens=[], result=None, is_abandoned=True)


@pytest.mark.parametrize(
    ("found", "num_accepted", "counted"),
    [
        (make_found(make_result(), id_of_key={"key": ID}), 1, {"reply_lost": 1}),
        (make_found(unanswered=frozenset({ID}), id_of_key={"key": ID}), 1, {"reply_lost": 1, "lost": 1}),
        (make_found(id_of_key={"key": ID}), 0, {}),
        (make_found(), 0, {}),
        (make_found(make_result()), 0, {"doubled": 1}),
        (make_found(unanswered=frozenset({ID})), 0, {"lost": 1}),
    ],
)
def test_what_no_client_was_told_of_is_found_by_its_key(
    found: Found, num_accepted: int, counted: Mapping[str, int]
) -> None:
    """A request whose reply was lost counts as accepted; a record of a key alone does not."""
    assert find(GONE, found) == counted
    assert judge([GONE], QUESTIONS, found).num_accepted == num_accepted


PAIR = Question(1, {"n": 2})
CALL = Question(2, {"tools": []})
CALL_TEXT = '<tool_call>{"name": "find", "arguments": {"a": 1}}</tool_call>'
FIRST, SECOND = make_result(text="one"), make_result(id=OTHER, text="two")
make_pair = partial(
    make_entry, question=1, ids=[ID, OTHER], tokens=[], shown=[{0: "o"}, {1: "two", 0: "one"}]
)
make_call = partial(make_entry, question=2, tokens=[], shown=[{0: f'call_{ID}_0find{{"a": 1}}'}])


@pytest.mark.parametrize(
    ("entry", "found", "counted"),
    [
        (make_pair(), make_found(FIRST, SECOND), {}),
        (make_pair(), make_found(FIRST), {"lost": 1}),
        (make_pair(ids=[ID]), make_found(FIRST), {"lost": 1}),
        (make_pair(shown=[{0: "one"}]), make_found(FIRST, SECOND), {"lost": 1, "contradicted": 1}),
        (make_pair(ids=["c" * 32, ID, OTHER]), make_found(FIRST, SECOND), {"doubled": 1}),
        (make_pair(shown=[{0: "x"}, {0: "one", 1: "two"}]), make_found(FIRST, SECOND), {"contradicted": 1}),
        (make_pair(shown=[{0: "one", 1: "x"}]), make_found(FIRST, SECOND), {"contradicted": 1}),
        (make_call(), make_found(make_result(text=CALL_TEXT)), {}),
        (make_call(), make_found(make_result(text="another")), {"contradicted": 1}),
        (
            make_call(shown=[{0: f'call_{ID}_0find{{"a": 1}} <tool'}]),
            make_found(make_result(text=f"{CALL_TEXT} <tool")),
            {},
        ),
        (make_call(shown=[{0: f"call_{OTHER}_0find"}]), make_found(RESULT), {"doubled": 1}),
        (
            make_entry(ids=[], result=None),
            make_found(SECOND, further_choices=frozenset({OTHER})),
            {"half_submitted": 1},
        ),
    ],
)
def test_choices_and_calls_are_compared(entry: Entry, found: Found, counted: Mapping[str, int]) -> None:
    """Every choice is there once, retries show the same text, and calls have the ids of their request."""
    verdict = judge([entry], {0: QUESTIONS[0], 1: PAIR, 2: CALL}, found)
    assert {what: number for what, number in verdict.counts.items() if number} == counted


@pytest.mark.parametrize(
    ("form", "good", "bad"),
    [
        (
            "schema",
            '{"kind": "sea", "name": "ab", "sizes": [1, 22]}',
            '{"kind": "sea", "name": "ab", "sizes": [1, 2',
        ),
        ("schema", '{"kind":"lamp","name":"abc","sizes":[]}', '{"kind":"lamp","name":"abc","sizes":[true]}'),
        ("regex", "abc-12 sea river", "abc-12 sea river."),
        (
            "tools",
            '<tool_call>\n{"name": "find", "arguments": {"kind":"sea","name":"ab","sizes":[]}}\n</tool_call>',
            '<tool_call>\n{"name": "find", "arguments": {"kind":"sea"}}\n</tool_call>',
        ),
    ],
)
def test_an_answer_without_its_form_is_invalid(form: str, good: str, bad: str) -> None:
    """One that ended by itself; one that was cut need not match."""
    assert find_fault(form, make_result(text=good, finish_reason="stop")) == ""
    assert find_fault(form, make_result(text=bad, finish_reason="stop"))
    assert find_fault(form, make_result(text=bad)) == ""


def test_each_token_has_its_logprob() -> None:
    """No more, no fewer, and in order."""
    logprobs = tuple(TokenLogprob(token, -1.0) for token in (5, 6, 7))
    assert find_fault("logprobs", make_result(logprobs=logprobs)) == ""
    for wrong in (None, logprobs[:2], (*logprobs, logprobs[0]), logprobs[::-1]):
        assert find_fault("logprobs", make_result(logprobs=wrong))


def test_a_quarter_of_the_questions_has_a_form() -> None:
    """Each form at least once, and the same for the same seed."""
    made = [[make_question(number, random.Random(seed), 60) for number in range(24)] for seed in (3, 3)]
    assert made[0] == made[1]
    assert [question.form for question in made[0] if question.form] == [form.name for form in FORMS]


def test_one_answer_for_two_keys_is_doubled() -> None:
    """Two requests must not be answered by one."""
    verdict = judge([make_entry(), make_entry(key="another")], QUESTIONS, GOOD)
    assert verdict.counts["doubled"] == 1


def test_growth_is_told_from_noise() -> None:
    """The medians of the thirds count: a leak is found, one high moment or a missing third is none."""
    names = ("api descriptors", "num_files", "num_processes")
    flat, leak, spike = [50.0] * 90, [50.0 + at for at in range(90)], [50.0] * 89 + [5000.0]
    samples = [dict(zip(names, row, strict=True)) for row in zip(flat, leak, spike, strict=True)]
    grown = {growth.name: growth.is_flat for growth in compare_thirds(samples)}
    assert grown == {"api descriptors": True, "num_files": False, "num_processes": True}
    assert compare_thirds(samples[:20]) == []
    assert compare_thirds([{}] * 41 + [{"api descriptors": 5.0}] * 19) == []


def test_recovery_is_the_time_to_the_next_token() -> None:
    """Late tokens of the dead ring do not count, nor kills with another kill before the next token."""

    def kill(at: float, victim: str = "rank 1") -> Kill:
        return Kill(at, victim, 1, "ready", 1)

    tokens = [9.9, 10.05, 12.0, 12.1, 30.0, 30.1]
    assert recovery_times([kill(10.0)], tokens) == {"rank": [2.0]}
    assert recovery_times([kill(10.0), kill(20.0), kill(21.0, "api")], tokens) == {
        "rank": [2.0],
        "api": [9.0],
    }
    assert recovery_times([kill(31.0)], tokens) == {}


def test_lost_and_doubled_tokens_are_counted() -> None:
    """By their indexes against the number that the result says."""
    assert count_faults([0, 1, 2], 3) == (0, 0)
    assert count_faults([0, 2, 2, 3], 4) == (1, 1)


def test_files_of_requests_are_no_growth(tmp_path: Path) -> None:
    """What belongs to a finished or a waiting request does not count; what nobody owns does."""
    folder = tmp_path / "spool"
    names = ("done", "asked", "stream", "idem", "incoming", "active", "tmp")
    for name in names:
        (folder / name).mkdir(parents=True)
    empty = count_files(tmp_path)
    waiting = EntryName(5, 1, OTHER).waiting
    owned = (f"done/{ID}.json", f"asked/{ID}.json", f"stream/{ID}", "idem/a", f"incoming/{waiting}", "idem/b")
    for name in owned:
        (folder / name).touch()
    assert count_files(tmp_path) == empty
    for name in ("tmp/x", f"stream/{uuid.UUID(int=9).hex}", "idem/c"):
        (folder / name).touch()
    assert count_files(tmp_path) == empty + 3
