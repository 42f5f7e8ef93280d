"""Threads of products: a rank's share of the cores, all of them while no other has work."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
RUN = """
import ctypes, sys
from distributed.blas import load_fast_blas
load_fast_blas("off", 1)
from distributed.threads import ProductThreads
threads, openmp = ProductThreads(1, 3), ctypes.CDLL("libgomp.so.1")
print(threads.gain)
for is_alone in (False, True, True, False):
    threads.use(is_alone=is_alone)
    print(openmp.omp_get_max_threads())
fixed = ProductThreads(2, 2)
fixed.use(is_alone=True)
print(fixed.gain, openmp.omp_get_max_threads())
"""


@pytest.mark.skipif(sys.platform == "darwin", reason="the service uses no OpenMP on macOS")
def test_the_number_of_threads_follows_the_steps() -> None:
    """Of GCC's OpenMP, on which oneDNN runs; a number that was set is left alone."""
    done = subprocess.run([sys.executable, "-c", RUN], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["3.0", "1", "3", "3", "1", "1.0", "1"], done.stderr
