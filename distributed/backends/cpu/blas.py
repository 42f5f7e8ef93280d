"""Load a fast BLAS under MLX on Linux, before MLX is imported.

The CPU wheel of MLX bundles the reference BLAS (2.4 GFLOP/s a core); another one loaded earlier with global
symbols takes its place. Two are known: `mkl` from PyPI (x86-64 only; 700 MB installed and 300 MB of OpenMP
runtime; Intel Simplified Software License, its runtime under Intel's developer tools EULA: free to use and to
redistribute, not open source) and the system's
OpenBLAS (Debian package libopenblas0-pthread, about 40 MB; BSD licence). On macOS MLX uses Accelerate and
Metal, and nothing is done here.

Knows nothing of models or settings. Must never import MLX.
"""

import ctypes
import ctypes.util
import glob
import logging
import os
import platform
import sys

CHOICES = ("auto", "mkl", "openblas", "off")

_FIXES = {
    "mkl": f"{sys.executable} -m pip install mkl",
    "openblas": "sudo apt-get install libopenblas0-pthread",
}

_log = logging.getLogger(__name__)


class BlasNotFound(RuntimeError):
    """The BLAS that was asked for by name is not on this machine, or does not load; the start stops."""


def load_fast_blas(choice: str, num_threads: int) -> str:
    """Load the chosen BLAS for all libraries loaded later; return its name, "" for none.

    Args:
        choice: one of CHOICES; `auto` takes mkl, else OpenBLAS, else warns.
        num_threads: threads of the BLAS; ranks on one machine share its cores.

    Raises:
        BlasNotFound: `mkl` or `openblas` was asked for and is missing (the process ends with its sentence).
    """
    if choice not in CHOICES:
        raise ValueError(f"CPU_BLAS is {choice!r}; allowed are {', '.join(CHOICES)}")
    if sys.platform == "darwin":
        return ""
    assert "mlx.core" not in sys.modules, "a BLAS loaded after mlx.core has no effect"
    _limit_threads(num_threads)
    if choice == "off":
        return ""
    for name in ("mkl", "openblas") if choice == "auto" else (choice,):
        if _load(name):
            return name
    if choice == "auto":
        _log.warning("no fast BLAS found: products will be 10 to 30 times slower. Fix it with: %s", _fix())
        return ""
    raise BlasNotFound(f"CPU_BLAS={choice}, but it cannot be loaded here. Fix it with: {_FIXES[choice]}")


def _limit_threads(num_threads: int) -> None:
    for name in ("MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ[name] = str(num_threads)
    os.environ["KMP_BLOCKTIME"] = "0"  # otherwise idle OpenMP threads spin for 200 ms after each product


def _load(name: str) -> bool:
    for library in _libraries(name):
        try:
            ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            _log.warning("cannot load %s: %s", library, error)
        else:
            return True
    return False


def _libraries(name: str) -> list[str]:
    if name == "mkl":
        return sorted(glob.glob(os.path.join(sys.prefix, "lib", "libmkl_rt.so.*")))
    found = ctypes.util.find_library("openblas")
    return [found] if found else []


def _fix() -> str:
    return _FIXES["mkl" if platform.machine() in ("x86_64", "AMD64") else "openblas"]
