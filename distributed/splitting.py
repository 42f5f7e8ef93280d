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

# One group leaves no stage free for the chunks of prompts and no stage busy while others work: it has to gain
# something. Measured on two cores, one group to two: 8 rows 0.7, 16 rows 0.78, 32 rows 1.0.
MIN_GAIN = 0.8
# Of a new lap in the running mean; more while there are few, so that the first says no more than the others.
WEIGHT = 0.1
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
        self._together = _Means()  # by rows in all: microseconds of a lap
        self._apart = _Means()
        self._work = _Means()  # busy microseconds of all stages, for one of the groups

    def note(self, num_groups: int, num_rows: int, lap_us: float, busy_us: float) -> None:
        """Take in a lap of one of `num_groups` even groups.

        Args:
            num_rows: of all groups.
            busy_us: of all stages, for this group.
        """
        if num_groups == 1:
            self._together.add(num_rows, lap_us)
            self._apart.shrink(num_rows)
        elif num_groups == self.num_tables:
            self._apart.add(num_rows, lap_us)
            self._work.add(num_rows, busy_us)
            self._together.shrink(num_rows)

    def choose(self, num_rows: int) -> int:
        """Return the number of groups for so many rows."""
        apart = self._apart.estimate(num_rows)
        if apart is None or num_rows < 2:
            return self.num_tables
        together = self._together.estimate(num_rows) or 0.0
        if num_rows not in self._together.means:
            together = max(together, (self._work.estimate(num_rows) or 0.0) / self._thread_gain)
        return 1 if together < MIN_GAIN * apart else self.num_tables


class _Means:
    """A running mean for each size that was seen."""

    def __init__(self) -> None:
        self.means: dict[int, float] = {}
        self._counts: dict[int, int] = {}

    def add(self, size: int, value: float) -> None:
        count = self._counts[size] = self._counts.get(size, 0) + 1
        old = self.means.get(size, 0.0)
        self.means[size] = old + max(WEIGHT, 1 / count) * (value - old)

    def shrink(self, size: int) -> None:
        if size in self.means:
            self.means[size] *= 1 - FORGETTING

    def estimate(self, size: int) -> float | None:
        """Read between and beyond the sizes that are known; None where none is."""
        means = self.means
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
