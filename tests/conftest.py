"""What all tests share: the fast BLAS, loaded before any test imports MLX, on one thread; and a second try.

Only tests of real processes get one: they have time limits and share their machine with others. pytest names
each that needed it and counts them in its closing line: none is what we want to see there.
"""

import pytest

from distributed.blas import load_fast_blas

pytest_plugins = ["tests.cluster_service", "tests.fixtures"]

REAL_PROCESSES = ("cluster", "faults")

load_fast_blas("auto", 1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let tests of real processes, and only these, run once more (after a pause) before they fail."""
    for item in items:
        is_marked = item.get_closest_marker("slow") or item.get_closest_marker("long")
        if is_marked or item.path.parent.name in REAL_PROCESSES:
            item.add_marker(pytest.mark.flaky(reruns=1, reruns_delay=5))
