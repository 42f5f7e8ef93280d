"""How many threads multiply: this rank's share of the cores, or more while no other rank has work.

Ranks on one machine share its cores. While a single microbatch is under way, only the stage that has it
works, and the cores of the others are idle: it may use them. This is for products with packed weights; a BLAS
stays as it was loaded, as more threads gain it nothing with few rows (mkl: -10 % at one). Knows nothing of
MLX, stages or settings.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ProductThreads:
    """Threads while other ranks of this machine work too, and while they do not."""

    num_shared: int
    num_alone: int

    @property
    def gain(self) -> float:
        """How many times as many there are while no other rank works."""
        return self.num_alone / self.num_shared
