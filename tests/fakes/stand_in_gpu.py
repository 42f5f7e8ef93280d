"""A backend that takes the CPU for a GPU: MLX's own layers, in the type and packing that the weights have."""

from __future__ import annotations

from distributed.backends.mlx import MlxBackend


class StandInGpu(MlxBackend):
    """What a Mac's ranks run, in half precision on any machine; unpacked experts need float32 on a CPU."""

    def limit_bytes(self) -> int | None:
        return None
