"""Which packer multiplies on this machine: oneDNN where it has fast kernels, else those we compile.

Knows nothing of models, settings or MLX. `python -m distributed.packers CHOICE` tells what is found, for the
doctor: a library for another processor may end its process.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

from distributed.kernels import Kernels
from distributed.onednn import OneDnn
from distributed.packing import Packer, PackerUnusable

_MAKERS: dict[str, Callable[[], Packer]] = {"onednn": OneDnn, "kernels": Kernels}
CHOICES = ("auto", *_MAKERS, "blas")


@dataclass(frozen=True)
class Found:
    """The packer to use, None for the BLAS; and why those tried before it are of no use, by name."""

    packer: Packer | None = None
    unusable: dict[str, PackerUnusable] = field(default_factory=dict)


def find_packer(choice: str) -> Found:
    """Make the packer of a choice, one of CHOICES; `auto` takes the first that can be used here."""
    assert choice in CHOICES, choice
    unusable: dict[str, PackerUnusable] = {}
    if choice == "blas":
        return Found()
    for name in _MAKERS if choice == "auto" else (choice,):
        try:
            return Found(_MAKERS[name](), unusable)
        except PackerUnusable as error:
            unusable[name] = error
    return Found(None, unusable)


def main() -> None:
    """Print what is found, as JSON: {"packer": name or null, "unusable": {name: [reason, mend]}}."""
    found = find_packer(sys.argv[1])
    unusable = {name: [str(error), error.mend] for name, error in found.unusable.items()}
    print(json.dumps({"packer": str(found.packer) if found.packer else None, "unusable": unusable}))


if __name__ == "__main__":
    main()
