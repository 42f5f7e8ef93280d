"""What all tests share: the fast BLAS, loaded before any test imports MLX, on one thread; and their order.

`check` gives whole files to its test processes, first those that start processes of their own: they take
longest. What they share of the machine (ports, network namespaces, folders) each finds or makes for itself.
"""

import pytest

from distributed.blas import load_fast_blas

pytest_plugins = ["tests.cluster_service", "tests.fixtures"]

FOLDERS_OF_PROCESSES = {"cluster", "faults"}
FIXTURES_OF_PROCESSES = {"bench", "shared_bench", "hosts", "shared_hosts"}

load_fast_blas("auto", 1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what starts processes as slow, and let files with slow tests come first."""
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        if item.path.parent.name in FOLDERS_OF_PROCESSES or FIXTURES_OF_PROCESSES.intersection(fixtures):
            item.add_marker(pytest.mark.slow)
    slow_files = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow_files)
