"""What all tests share: the fast BLAS, loaded before any test imports MLX, on one thread; marks and order.

`check` gives whole files to its test processes, first those that start processes of their own: they take
longest. What they share of the machine (ports, network namespaces, folders) each finds or makes for itself.
"""

import gc
import signal

import hypothesis
import pytest

from distributed.backends.cpu.blas import load_fast_blas

pytest_plugins = ["tests.services.cluster_service", "tests.services.fixtures"]

FOLDERS_OF_PROCESSES = {"on_hosts", "faults"}
FIXTURES_OF_PROCESSES = {"bench", "shared_bench", "hosts", "shared_hosts"}
FILES_THAT_COMPUTE = {"test_models.py", "test_non_finite.py", "test_preemption.py"}

signal.signal(signal.SIGINT, signal.default_int_handler)  # tests send it; a background job ignores it
gc.disable()  # until all is collected: that makes many objects, and all of them stay
load_fast_blas("auto", 1)
# Other examples in each run; the time of one is the machine's.
hypothesis.settings.register_profile("check", max_examples=50, deadline=None)
hypothesis.settings.load_profile("check")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what starts processes or computes for seconds as slow; files with slow tests come first."""
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        starts_processes = (
            item.path.parent.name in FOLDERS_OF_PROCESSES or FIXTURES_OF_PROCESSES.intersection(fixtures)
        )
        if starts_processes or item.path.name in FILES_THAT_COMPUTE:
            item.add_marker(pytest.mark.slow)
    slow_files = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow_files)


def pytest_collection_finish() -> None:
    """Leave what was collected out of every later look for garbage."""
    gc.collect()
    gc.freeze()
    gc.enable()
