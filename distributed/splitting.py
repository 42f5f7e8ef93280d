"""Into how many groups decode rows are split: as many as there are tables, or one. Pure arithmetic.

Several groups keep several stages busy, but each group pays for its own read of the weights. One group is
better where few rows cost as much as one and the stage that works may use the cores of those that wait. Both
ways are judged by what was measured: the time of a lap with so many rows in all, after which each row has a
new token either way.

    laps of one group       T(R)    not yet seen: extended from what was, but never less than the work of
                                    the stages that was measured in several groups, on all their cores
    laps of all groups      T'(R)   one group where T(R) is less than MIN_GAIN of it; never guessed for many
                                    more rows than were seen

More rows never take less: a lap of a few rows that took longer than those of more was disturbed, and is
averaged with them (isotonic regression: pooled neighbours).
"""

from __future__ import annotations

from bisect import bisect_left

# One group leaves no stage free for the chunks of prompts, so it has to gain something; less to stay than to
# change. Measured on two cores beside a front door and its clients, one group to two: 8 rows 0.78 to 0.9,
# 16 rows 0.85 to 1, 32 rows 1.15.
MIN_GAIN = 0.9
MIN_GAIN_TO_STAY = 0.97
MIN_GAIN_TO_TRY = 0.8  # where one group of so many rows was not measured yet
# Several groups are measured at a size before one is tried there: so much more rows are another size.
MAX_BEYOND = 1.25
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
        self._together = _Curve()  # by rows in all: microseconds of a lap
        self._apart = _Curve()
        self._work = _Curve()  # busy microseconds of all stages, for one of the groups
        self._last = num_tables

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
        self._last = 1 if self._gains_together(num_rows) else self.num_tables
        return self._last

    def _gains_together(self, num_rows: int) -> bool:
        if num_rows < 2 or num_rows > MAX_BEYOND * self._apart.most_rows:
            return False
        together = self._together.at(num_rows)
        gain = MIN_GAIN_TO_STAY if self._last == 1 else MIN_GAIN
        if num_rows not in self._together:
            together = max(together, self._work.at(num_rows) / self._thread_gain)
            gain = MIN_GAIN_TO_TRY
        return together < gain * self._apart.at(num_rows)


class _Curve:
    """A running mean for each number of rows that was seen, and a curve through them that never falls."""

    def __init__(self) -> None:
        self._means: dict[int, float] = {}
        self._counts: dict[int, int] = {}
        self._points: list[tuple[int, float]] | None = None

    def __contains__(self, num_rows: int) -> bool:
        return num_rows in self._means

    @property
    def most_rows(self) -> int:
        return max(self._means, default=0)

    def add(self, num_rows: int, value: float) -> None:
        count = self._counts[num_rows] = self._counts.get(num_rows, 0) + 1
        old = self._means.get(num_rows, 0.0)
        self._means[num_rows] = old + max(WEIGHT, 1 / count) * (value - old)
        self._points = None

    def shrink(self, num_rows: int) -> None:
        if num_rows in self._means:
            self._means[num_rows] *= 1 - FORGETTING
            self._points = None

    def at(self, num_rows: int) -> float:
        """Read the curve at, between and beyond the sizes that were seen; 0 where none was."""
        points = self._points = self._points or self._fit()
        if not points:
            return 0.0
        place = bisect_left(points, num_rows, key=_size)
        if place == 0:
            return points[0][1] * min(1.0, num_rows / points[0][0])
        if place == len(points):
            if len(points) == 1:
                return points[0][1]
            high, high_us = points[-1]
            # Two neighbours give no slope that can be relied on.
            low, low_us = next((point for point in reversed(points) if point[0] <= high / 2), points[0])
        else:
            (low, low_us), (high, high_us) = points[place - 1 : place + 1]
        return low_us + (high_us - low_us) / (high - low) * (num_rows - low)

    def _fit(self) -> list[tuple[int, float]]:
        """Return (rows, value) by rows; neighbours that fall share their mean, weighted by their laps."""
        pools: list[tuple[list[int], float, float]] = []
        for size in sorted(self._means):
            sizes, value, weight = [size], self._means[size], min(self._counts[size], 1 / WEIGHT)
            while pools and pools[-1][1] > value:
                more, other, other_weight = pools.pop()
                value = (value * weight + other * other_weight) / (weight + other_weight)
                sizes, weight = more + sizes, weight + other_weight
            pools.append((sizes, value, weight))
        return [(size, value) for sizes, value, _ in pools for size in sizes]


def _size(point: tuple[int, float]) -> int:
    return point[0]
