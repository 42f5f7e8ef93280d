"""The fast BLAS under MLX on Linux: which one is loaded, and what is said where it is missing."""

import subprocess
import sys

import pytest

from config import REPOSITORY_ROOT as ROOT
from distributed.backends.cpu import blas

on_linux = pytest.mark.skipif(sys.platform == "darwin", reason="nothing is loaded on macOS")


def run(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh process: a BLAS is loaded once in a process's life."""
    code = f"import os, sys\nfrom distributed.backends.cpu import blas\n{code}"
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)


@on_linux
def test_threads_are_limited_before_the_library_is_loaded() -> None:
    """Every known BLAS and its OpenMP read their number of threads from the environment."""
    names = "MKL_NUM_THREADS OPENBLAS_NUM_THREADS OMP_NUM_THREADS KMP_BLOCKTIME"
    done = run(f"blas.load_fast_blas('auto', 3)\nprint(*(os.environ[n] for n in '{names}'.split()))")
    assert done.stdout.split() == ["3", "3", "3", "0"]


@on_linux
def test_loading_imports_no_mlx_and_names_what_it_loaded() -> None:
    """The name is one of the two known ones, or empty."""
    done = run("print(repr(blas.load_fast_blas('auto', 1)), 'mlx.core' in sys.modules)")
    assert done.stdout.strip() in {"'mkl' False", "'openblas' False", "'' False"}
    assert run("print(repr(blas.load_fast_blas('off', 1)))").stdout.strip() == "''"


@on_linux
@pytest.mark.parametrize(
    ("choice", "mend"), [("mkl", "-m pip install mkl"), ("openblas", "apt-get install libopenblas")]
)
def test_a_missing_blas_asked_for_by_name_stops_with_the_command_that_mends_it(
    choice: str, mend: str
) -> None:
    """An explicit choice is never quietly replaced."""
    absent = "blas.sys.prefix = '/nowhere'\nblas.ctypes.util.find_library = lambda name: None\n"
    done = run(f"{absent}blas.load_fast_blas('{choice}', 1)")
    assert done.returncode != 0
    assert f"BlasNotFound: CPU_BLAS={choice}" in done.stderr
    assert mend in done.stderr


@on_linux
def test_auto_without_any_blas_warns_with_the_command_that_mends_it() -> None:
    """The service starts slowly rather than not at all, and says so."""
    absent = "blas.sys.prefix = '/nowhere'\nblas.ctypes.util.find_library = lambda name: None\n"
    done = run(f"{absent}print(repr(blas.load_fast_blas('auto', 1)))")
    assert done.stdout.strip() == "''"
    assert "no fast BLAS found" in done.stderr
    assert "install" in done.stderr


def test_an_unknown_choice_is_refused() -> None:
    """The sentence lists what is allowed."""
    with pytest.raises(ValueError, match="auto, mkl, openblas, off"):
        blas.load_fast_blas("atlas", 1)
