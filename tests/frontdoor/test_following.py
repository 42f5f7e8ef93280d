"""The events of a stream, as data: every index once, in order, whatever the log did."""

from hypothesis import given
from hypothesis import strategies as st

from frontdoor.following import Event, Follower
from spool import Result, TokenRecord, Usage

ID = "a" * 32


def log_of(num_tokens: int, *, life: str = "") -> list[TokenRecord]:
    return [TokenRecord(index, index, f"{life}{index} ") for index in range(num_tokens)]


def result_of(records: list[TokenRecord]) -> Result:
    text = "".join(record.text for record in records)
    ids = tuple(record.token_id for record in records)
    return Result(ID, "tiny", text, ids, "stop", Usage(1, len(ids), 0), {}, None, 0.0)


def sent(events: list[Event]) -> list[TokenRecord]:
    return [record for event in events for record in event.records]


@given(num_tokens=st.integers(0, 20), start=st.integers(0, 20), cuts=st.lists(st.integers(0, 20), max_size=5))
def test_every_index_from_the_start_on_is_told_once(num_tokens: int, start: int, cuts: list[int]) -> None:
    """However the log's lines come in pieces; a start beyond the log is a reset and everything."""
    records = log_of(num_tokens)
    bounds = sorted({min(cut, num_tokens) for cut in cuts} | {num_tokens})
    follower, events, at = Follower(start), [], 0
    for bound in bounds:
        events += follower.take(records[at:bound])
        at = bound
    events += follower.take([], result=result_of(records))
    is_beyond = start > bounds[0]
    assert any(event.is_reset for event in events) == is_beyond
    first = 0 if is_beyond else start
    assert sent(events) == records[first:]
    assert events[-1].result is not None


def test_a_log_that_began_anew_is_told_from_its_first_token() -> None:
    """The reset stands before the new tokens, and none of the old ones is repeated after it."""
    follower = Follower(2)
    assert sent(follower.take(log_of(4))) == log_of(4)[2:]
    events = follower.take(log_of(3, life="b"), was_reset=True)
    assert events[0].is_reset
    assert sent(events) == log_of(3, life="b")


def test_a_reset_without_tokens_yet_is_told_at_once() -> None:
    """A log that is gone, and the tokens of the next one later."""
    follower = Follower(0)
    follower.take(log_of(2))
    assert follower.take([], was_reset=True) == [Event(is_reset=True)]
    assert sent(follower.take(log_of(3, life="b"))) == log_of(3, life="b")


def test_tokens_that_only_the_result_has_are_made_up_for() -> None:
    """A disk that was full kept them from the log: their text comes with the first of them."""
    whole = log_of(5)
    follower = Follower(1)
    events = follower.take(whole[:2]) + follower.take([], result=result_of(whole))
    records = sent(events)
    assert [record.index for record in records] == [1, 2, 3, 4]
    assert "".join(record.text for record in records) == "1 2 3 4 "
    assert events[-1].result is not None


def test_a_failed_result_is_an_error_event() -> None:
    """After the tokens that there were."""
    failed = Result.failed(ID, model="tiny", code="poison", message="no", finished_unix=0.0)
    events = Follower(0).take(log_of(2), result=failed)
    assert sent(events) == log_of(2)
    assert events[-1].error is not None
    assert events[-1].error.code == "poison"
