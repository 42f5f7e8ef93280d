"""How decode rows are split into groups: by measured laps alone."""

from __future__ import annotations

from collections.abc import Callable

from distributed.splitting import Splitting


def teach(splitting: Splitting, num_rows: int, lap: Callable[[int, int], float], laps: int = 40) -> int:
    """Play laps of so many rows in as many groups as are chosen; return the number of groups at the end."""
    for _ in range(laps):
        groups = splitting.choose(num_rows)
        splitting.note(groups, num_rows, lap(groups, num_rows), 2 * stage_us(num_rows / groups))
    return splitting.choose(num_rows)


def stage_us(num_rows: float) -> float:
    """A stage's time: 4 rows cost as much as one, then each row a share."""
    return 20_000 + 1_500 * max(0.0, num_rows - 4)


def lap_on_own_cores(groups: int, num_rows: int) -> float:
    """Two stages of two machines: several groups keep both busy, one goes through both."""
    return 2 * stage_us(num_rows / groups)


def lap_on_shared_cores(groups: int, num_rows: int) -> float:
    """Two stages of one machine: the one that works alone has twice the cores, with some loss."""
    return 2 * stage_us(num_rows / groups) * (0.6 if groups == 1 else 1)


def test_nothing_known_means_as_many_groups_as_tables() -> None:
    """Also for a single row, which is one group wherever it is."""
    splitting = Splitting(3, thread_gain=2)
    assert [splitting.choose(rows) for rows in (1, 2, 30)] == [3, 3, 3]


def test_rows_stay_together_where_idle_cores_make_that_faster() -> None:
    """With few rows; with many, two groups of half the rows are faster again."""
    splitting = Splitting(2, thread_gain=2)
    assert teach(splitting, 4, lap_on_shared_cores) == 1
    assert teach(splitting, 8, lap_on_shared_cores) == 1
    assert teach(splitting, 64, lap_on_shared_cores) == 2
    assert teach(splitting, 8, lap_on_shared_cores) == 1


def test_what_cannot_gain_is_not_tried() -> None:
    """The work that was measured apart, on all cores, is the least that one group can take."""
    splitting = Splitting(2, thread_gain=1.1)
    for rows in (2, 4, 8, 32, 3, 64):
        for _ in range(20):
            assert splitting.choose(rows) == 2
            splitting.note(2, rows, lap_on_own_cores(2, rows), 2 * stage_us(rows / 2))


def test_a_trial_that_gains_nothing_is_not_repeated_soon() -> None:
    """It is measured once, and again after thousands of laps, as machines change."""
    splitting = Splitting(2, thread_gain=2)
    chosen = []
    for _ in range(20_000):
        groups = splitting.choose(16)
        chosen.append(groups)
        splitting.note(groups, 16, 80_000 if groups == 2 else 120_000, 80_000)
    assert chosen[0] == 2
    trials = [place for place, groups in enumerate(chosen) if groups == 1]
    assert trials[0] < 5
    assert 1 < len(trials) < 20
    assert trials[1] - trials[0] > 5_000


def test_laps_of_other_numbers_of_groups_say_nothing() -> None:
    """Two groups of three tables come of rows that leave; neither way is judged by them."""
    splitting = Splitting(3, thread_gain=2)
    splitting.note(2, 8, 1.0, 1.0)
    assert splitting.choose(8) == 3


def test_a_slow_first_lap_does_not_decide() -> None:
    """The first lap of two groups pays for a table that grows; the others' mean stands before long."""
    splitting = Splitting(2, thread_gain=2)
    splitting.note(2, 32, 200_000, 45_000)
    splitting.note(1, 32, 100_000, 100_000)
    for _ in range(10):
        splitting.note(2, 32, 100_000, 45_000)
    assert splitting.choose(32) == 2


def test_many_more_rows_than_were_seen_are_split_first() -> None:
    """What a few rows took in several groups tells nothing about many: that is measured first."""
    splitting = Splitting(2, thread_gain=2)
    for rows, apart_us in ((4, 40_000), (8, 60_000)):  # first laps, with a slope that is too steep
        splitting.note(2, rows, apart_us, 20_000)
        splitting.note(1, rows, 30_000, 30_000)
    assert [splitting.choose(rows) for rows in (8, 10, 11, 32)] == [1, 1, 2, 2]
    for _ in range(10):
        splitting.note(2, 32, 75_000, 65_000)
    assert splitting.choose(32) == 1
    splitting.note(1, 32, 85_000, 85_000)
    assert splitting.choose(32) == 2


def test_a_disturbed_lap_is_averaged_with_those_of_more_rows() -> None:
    """11 rows cannot take longer than 13 did again and again."""
    splitting = Splitting(2, thread_gain=2)
    for rows in (11, 13):
        for _ in range(10):
            splitting.note(2, rows, 55_000, 50_000)
    splitting.note(1, 11, 70_000, 45_000)
    assert splitting.choose(11) == 2
    for _ in range(10):
        splitting.note(1, 13, 46_000, 46_000)
    assert splitting.choose(11) == 1


def test_a_change_needs_a_larger_gain_than_staying() -> None:
    """So that rows are not spread unevenly by small differences."""
    splitting = Splitting(2, thread_gain=2)
    for _ in range(10):
        splitting.note(2, 8, 45_000, 40_000)
        splitting.note(1, 8, 42_000, 42_000)
    assert splitting.choose(8) == 2
    for _ in range(30):
        splitting.note(1, 8, 38_000, 38_000)
    assert splitting.choose(8) == 1
    for _ in range(60):
        splitting.note(1, 8, 42_000, 42_000)
    assert splitting.choose(8) == 1
