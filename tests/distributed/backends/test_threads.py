"""Threads of products: a rank's share of the cores, all of them while no other has work."""

import gc
import time
import weakref

import numpy as np
import pytest

from distributed.backends.cpu.compiling import CannotCompile
from distributed.backends.cpu.kernels import Kernels
from distributed.backends.cpu.threads import ProductThreads


def make_kernels() -> Kernels:
    try:
        return Kernels()
    except CannotCompile as reason:
        pytest.skip(str(reason))


def test_gain_is_the_ratio_of_threads() -> None:
    """Whether a few rows gather in one group depends on it."""
    assert ProductThreads(1, 3).gain == 3
    assert ProductThreads(2, 2).gain == 1


def test_helping_threads_take_no_time_while_they_are_not_wanted() -> None:
    """They spin between the products of one step; after it they sleep, and a product is right either way."""
    kernels = make_kernels()
    weight = np.eye(64, dtype=np.float32)
    packed = kernels.pack(weight)
    for num_threads in (3, 1, 2):
        kernels.use_threads(num_threads)
        np.testing.assert_array_equal(packed(weight), weight)
    kernels.use_threads(1)
    limit = time.monotonic() + 5
    used = 1.0
    while used > 0.01 and time.monotonic() < limit:  # the last helper may be on its way to sleep
        before = time.process_time()
        time.sleep(0.1)
        used = time.process_time() - before
    assert used <= 0.01


def test_a_helping_thread_keeps_what_it_runs() -> None:
    """It may be on its way to sleep when the last weight goes."""
    kernels = make_kernels()
    kernels.use_threads(2)
    kernels.use_threads(1)
    kept = weakref.ref(kernels)
    del kernels
    gc.collect()
    assert kept() is not None
