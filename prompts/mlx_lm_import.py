"""Imports single modules of mlx-lm without the rest of the package.

`import mlx_lm` imports transformers, which is slow and which the model classes do not need (mlx_lm 0.32.2
__init__.py, generate.py, utils.py). So an empty package object of that name lets Python find the modules in
its folder. No other file imports mlx_lm. Imports no MLX itself; a module of mlx-lm may.
"""

import importlib
import importlib.util
import sys
from typing import Any

PACKAGE = "mlx_lm"


def import_mlx_lm(part: str) -> Any:
    """Return a module of mlx-lm, such as "models.llama".

    Raises:
        ImportError: mlx-lm is not installed, or this release has no such module.
    """
    if PACKAGE not in sys.modules:
        spec = importlib.util.find_spec(PACKAGE)
        if spec is None:
            raise ModuleNotFoundError(f"{PACKAGE} is not installed", name=PACKAGE)
        sys.modules.setdefault(PACKAGE, importlib.util.module_from_spec(spec))
    return importlib.import_module(f"{PACKAGE}.{part}")
