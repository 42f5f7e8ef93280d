"""The oracle of chaos as data in, data out, and the count of `demo --kill`."""

import uuid

import pytest

from chaos.journal import Entry, Question
from chaos.oracle import judge
from cluster.kill_demo import count_faults
from spool import Result, Usage

ID = uuid.UUID(int=7).hex
QUESTION = Question(0, {}, (5, 6, 7), "abc")


def make_result(**members: object) -> Result:
    fields = {
        "id": ID,
        "model": "m",
        "text": "abc",
        "token_ids": (5, 6, 7),
        "finish_reason": "length",
        "usage": Usage(1, 3, 0),
        "performance": {},
        "error": None,
        "finished_unix": 1.0,
    }
    return Result(**{**fields, **members})  # type: ignore[arg-type]


def make_entry(**members: object) -> Entry:
    fields = {
        "tokens": [(0, 5), (1, 6), (2, 7)],
        "ids": [ID],
        "result": {"text": "abc"},
        "num_connections": 2,
    }
    return Entry(0, "stream", "key", 0.0, **{**fields, **members})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("entry", "result", "found"),
    [
        (make_entry(), make_result(), {}),
        (make_entry(ids=[], result=None), None, {}),
        (make_entry(), None, {"lost": 1}),
        (make_entry(result=None), make_result(), {"lost": 1}),
        (make_entry(tokens=[(0, 5), (2, 7)]), make_result(), {"lost": 1}),
        (make_entry(tokens=[(0, 5), (0, 5), (1, 6), (2, 7)]), make_result(), {"doubled": 1}),
        (make_entry(ids=[ID, ID]), make_result(), {"doubled": 1}),
        (make_entry(tokens=[(0, 5), (1, 9), (2, 7)]), make_result(), {"contradicted": 1}),
        (make_entry(result={"text": "other"}), make_result(), {"contradicted": 1}),
        (make_entry(), make_result(finish_reason="cancelled"), {"condemned": 1}),
        (make_entry(), make_result(finish_reason="error", error={"code": "poison"}), {"condemned": 1}),
        (make_entry(tokens=[(0, 5)]), make_result(token_ids=(5, 8)), {"other_text": 1}),
    ],
)
def test_the_oracle_finds_each_fault(entry: Entry, result: Result | None, found: dict[str, int]) -> None:
    """Each kind of broken promise is counted, and nothing else is."""
    verdict = judge([entry], {0: QUESTION}, lambda _: result)
    assert {what: number for what, number in verdict.counts.items() if number} == found
    assert verdict.is_good == (not set(found) - {"other_text"})


def test_lost_and_doubled_tokens_are_counted() -> None:
    """By their indexes against the number that the result says."""
    assert count_faults([0, 1, 2], 3) == (0, 0)
    assert count_faults([0, 2, 2, 3], 4) == (1, 1)
