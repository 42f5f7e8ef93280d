"""How many threads multiply: this rank's share of the cores, or more while no other rank has work.

Ranks on one machine share its cores. While a single microbatch is under way, only the stage that has it
works, and the cores of the others are idle: it may use them. This sets GCC's OpenMP, which oneDNN runs on; a
BLAS stays as it was loaded, as more threads gain it nothing with few rows (mkl: -10 % at one). Knows nothing
of MLX, stages or settings.
"""

from __future__ import annotations

import ctypes


class ProductThreads:
    """Switches between two numbers of threads; for the thread that runs the stage."""

    def __init__(self, num_shared: int, num_alone: int) -> None:
        """
        Args:
            num_shared: while other ranks of this machine work too; what OpenMP was loaded with.
            num_alone: while they do not.
        """
        self._num_shared, self.num_alone = num_shared, max(num_shared, num_alone)
        self._num_now = num_shared
        self._openmp = _find_openmp() if self.num_alone > num_shared else None

    @property
    def gain(self) -> float:
        """How many times as many there are while no other rank works."""
        return self.num_alone / self._num_shared if self._openmp is not None else 1.0

    def use(self, *, is_alone: bool) -> None:
        """Set the number for the products that follow."""
        wanted = self.num_alone if is_alone else self._num_shared
        if self._openmp is not None and wanted != self._num_now:
            self._openmp.omp_set_num_threads(wanted)
            self._num_now = wanted


def _find_openmp() -> ctypes.CDLL | None:
    """GCC's, by name: mkl loads Intel's, which has the same symbols."""
    try:
        return ctypes.CDLL("libgomp.so.1")
    except OSError:
        return None
