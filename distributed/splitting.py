"""Into how many groups decode rows are split: as many as there are tables, or one. Pure arithmetic.

Several groups keep several stages busy, but each group pays for its own read of the weights. One group is
better where few rows cost as much as one and the stage that works may use the cores of those that wait. Both
ways are judged by what was measured: the time of a lap with so many rows in all, after which each row has a
new token either way.

    laps of one group       T(R)    not yet seen: extended from what was, but never less than the work of
                                    the stages that was measured in several groups, on all their cores
    laps of all groups      T'(R)   one group is tried where T(R) is less than MIN_GAIN of it
"""

from __future__ import annotations

from bisect import bisect_left

# One group leaves no stage free for the chunks of prompts, so it has to gain something.
MIN_GAIN = 0.85
WEIGHT = 0.1  # of a new lap in the running mean
# What is not chosen looks a little better with each lap of the other, so that it is tried again in the end.
FORGETTING = 5e-5


class Splitting:
    """Chooses between one group and `num_tables` groups, by the rows there are in all."""

    def __init__(self, num_tables: int, thread_gain: float) -> None:
        """
        Args:
            thread_gain: how many times as many threads a stage has while the others have no work; above 1.
        """
        self.num_tables, self._thread_gain = num_tables, thread_gain
        self._together: dict[int, float] = {}  # rows in all -> microseconds of a lap
        self._apart: dict[int, float] = {}
        self._work: dict[
            int, float
        ] = {}  # rows in all -> busy microseconds of all stages, for one group of them

    def note(self, num_groups: int, num_rows: int, lap_us: float, busy_us: float) -> None:
        """Take in a lap of one of `num_groups` even groups.

        Args:
            num_rows: of all groups.
            busy_us: of all stages, for this group.
        """
        if num_groups == 1:
            _blend(self._together, num_rows, lap_us)
            _shrink(self._apart, num_rows)
        elif num_groups == self.num_tables:
            _blend(self._apart, num_rows, lap_us)
            _blend(self._work, num_rows, busy_us)
            _shrink(self._together, num_rows)

    def choose(self, num_rows: int) -> int:
        """Return the number of groups for so many rows."""
        apart = _estimate(self._apart, num_rows)
        if apart is None or num_rows < 2:
            return self.num_tables
        together = _estimate(self._together, num_rows) or 0.0
        if num_rows not in self._together:
            together = max(together, (_estimate(self._work, num_rows) or 0.0) / self._thread_gain)
        return 1 if together < MIN_GAIN * apart else self.num_tables


def _blend(means: dict[int, float], key: int, value: float) -> None:
    old = means.get(key)
    means[key] = value if old is None else old + WEIGHT * (value - old)


def _shrink(means: dict[int, float], key: int) -> None:
    if key in means:
        means[key] *= 1 - FORGETTING


def _estimate(means: dict[int, float], size: int) -> float | None:
    """Read between and beyond the points that are known; None where none is."""
    if not means or size in means:
        return means.get(size)
    sizes = sorted(means)
    place = bisect_left(sizes, size)
    if place == 0:
        return means[sizes[0]] * size / sizes[0]
    if place == len(sizes):
        if len(sizes) == 1:
            return means[sizes[0]]
        low, high = sizes[-2:]
    else:
        low, high = sizes[place - 1 : place + 1]
    slope = max(0.0, means[high] - means[low]) / (high - low)
    return means[low] + slope * (size - low)
