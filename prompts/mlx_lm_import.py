"""Parts of mlx-lm by name, without what the whole package loads.

`import mlx_lm` imports transformers, which takes longer than all else that a rank imports; the model classes
need none of it (mlx_lm 0.32.2 __init__.py, generate.py, utils.py). So the package itself is never run: a bare
package object of its name lets Python find the modules in its folder. No other file imports mlx_lm. Imports
no MLX by itself; a part may.
"""

import importlib
import importlib.util
import sys
from typing import Any

PACKAGE = "mlx_lm"


def import_mlx_lm(part: str) -> Any:
    """Return a module of mlx-lm, such as "models.llama".

    Raises:
        ImportError: mlx-lm is not installed, or this release of it has no such module.
    """
    if PACKAGE not in sys.modules:
        spec = importlib.util.find_spec(PACKAGE)
        if spec is None:
            raise ModuleNotFoundError(f"{PACKAGE} is not installed", name=PACKAGE)
        sys.modules.setdefault(PACKAGE, importlib.util.module_from_spec(spec))
    return importlib.import_module(f"{PACKAGE}.{part}")
