"""Place in the queue, estimate and Retry-After from what rank 0 says."""

from pathlib import Path
from typing import Any

import pytest

from config.errors import SOON_SECONDS
from config.run_files import write_json
from frontdoor.queue_estimate import QueueEstimate, RateMeter
from frontdoor.ring_status import RingStatus
from spool import Request, SamplingParams, Spool


def status(at: float, num_ended: int, *, num_waiting: int = 1, epoch: int = 1) -> dict[str, Any]:
    return {
        "updated_unix": at,
        "epoch": epoch,
        "queue": {"num_waiting": num_waiting, "num_running": 0},
        "totals": {"requests": {"stop": num_ended, "length": 0}},
    }


def rate_of(*looks: dict[str, Any]) -> float | None:
    meter = RateMeter()
    for look in looks:
        meter.sample(look)
    return meter.requests_per_second()


def test_the_rate_is_what_ended_in_the_time_with_work() -> None:
    """Two a second over four seconds; the same status seen twice counts once."""
    looks = [status(at, 2 * at) for at in range(5)]
    assert rate_of(*looks, looks[-1]) == pytest.approx(2.0)


def test_idle_time_does_not_slow_the_rate() -> None:
    """A minute without requests, or without samples, gives no rate."""
    looks = [status(0, 0), status(1, 4), status(2, 8, num_waiting=0)]
    assert rate_of(*looks, status(3, 8, num_waiting=0), status(60, 8)) == pytest.approx(4.0)


@pytest.mark.parametrize(
    "looks",
    [[], [status(1, 5)], [status(1, 5), status(2, 5)], [status(1, 5), status(2, 1, epoch=2)], [{}, {}]],
)
def test_an_unknown_rate_is_none(looks: list[dict[str, Any]]) -> None:
    """Too few looks, nothing ended, or the totals of another life."""
    assert rate_of(*looks) is None


def test_old_stretches_are_forgotten() -> None:
    """The rate is that of the last minute."""
    slow = [status(at, at) for at in range(10)]
    fast = [status(100 + at, 10 + 5 * at) for at in range(10)]
    assert rate_of(*slow, *fast) == pytest.approx(5.0)


def test_place_and_retry_follow_the_rate(tmp_path: Path) -> None:
    """Position 0 is next; Retry-After waits for a tenth of the queue."""
    spool = Spool.open(tmp_path / "spool", durability="process")
    queue_estimate = QueueEstimate(spool, RingStatus(tmp_path / "run"))
    ids = [f"{number:032x}" for number in range(3)]
    for request_id in ids:
        spool.submit(Request(request_id, SamplingParams(max_tokens=1), "hi", None, None, "tiny"))
    first = queue_estimate.place(ids[0], is_exact=True)
    assert first is not None
    assert (first.position, first.estimated_wait_s) == (0, None)
    assert queue_estimate.retry_after_seconds() == SOON_SECONDS
    for at in range(3):
        write_json(tmp_path / "run" / "ring.json", status(1000.0 + at, at, num_waiting=100))
        queue_estimate.update()
    last = queue_estimate.place(ids[2])
    assert last is not None
    assert (last.position, last.estimated_wait_s) == (2, 3.0)
    assert str(last) == "position 2, about 3 s"
    assert queue_estimate.retry_after_seconds() == 10
    assert queue_estimate.place("f" * 32, is_exact=True) is None
