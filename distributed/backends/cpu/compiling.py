"""LLVM code made into functions of this process, and what it needs of NumPy arrays.

For Linux on x86-64 with AVX2 and FMA; llvmlite (https://llvmlite.readthedocs.io, BSD) compiles. Knows
nothing of products, layers, models or MLX.
"""

from __future__ import annotations

import platform
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float32Array = NDArray[np.float32]

PACKAGE = "llvmlite"
_FEATURES = ("avx2", "fma")


class CannotCompile(RuntimeError):
    """There is no compiler, or nothing for this processor or shape; `fix` is a command, or empty."""

    def __init__(self, reason: str, fix: str = "") -> None:
        super().__init__(reason)
        self.fix = fix


def count_lanes() -> int:
    """Return how many floats a vector register of this processor holds. Raises: CannotCompile."""
    return 16 if _load_compiler().get_host_cpu_features().get("avx512f") else 8


def compile_code(code: str) -> tuple[Any, str]:
    """Return the engine that holds the compiled code, and the processor's name. Raises: CannotCompile."""
    llvm = _load_compiler()
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    processor, features = llvm.get_host_cpu_name(), llvm.get_host_cpu_features()
    target = llvm.Target.from_default_triple().create_target_machine(
        cpu=processor, features=features.flatten(), opt=3
    )
    module = llvm.parse_assembly(code)
    module.verify()
    engine = llvm.create_mcjit_compiler(module, target)
    engine.finalize_object()
    return engine, processor


def _load_compiler() -> Any:
    """Return llvmlite's binding. Raises: CannotCompile."""
    if not sys.platform.startswith("linux") or platform.machine() not in ("x86_64", "AMD64"):
        raise CannotCompile("the compiled code is for Linux on x86-64")
    try:
        import llvmlite.binding as llvm
    except (ImportError, OSError) as error:
        fix = f"{sys.executable} -m pip install {PACKAGE}"
        raise CannotCompile(f"llvmlite does not load: {error}", fix) from None
    features = llvm.get_host_cpu_features()
    missing = [name for name in _FEATURES if not features.get(name)]
    if missing:
        raise CannotCompile(f"this processor has no {' and no '.join(missing)}")
    return llvm


def address_of(array: NDArray[np.generic]) -> int:
    """Where an array's numbers begin; cheaper than `ctypes.data`."""
    return int(array.__array_interface__["data"][0])
