"""A machine without a GPU: float32, packed weights unpacked where there is room, and what NumPy runs faster.

Which layers leave MLX is decided here: whole dense layers (`dense`), else experts and latent attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from distributed.backends.backend import Backend, StageRunner
from distributed.backends.cpu.dense import DenseLayers, plan_dense_layers
from distributed.backends.cpu.experts import place_experts
from distributed.backends.cpu.latents import place_latents
from distributed.backends.memory import free_bytes
from distributed.backends.mlx import MlxRunner
from distributed.models import StageModel
from distributed.models.general import StageParts
from distributed.planning.families.family import count_experts
from distributed.planning.model_shape import ModelShape

CHUNK_TOKENS = 128
MIXTURE_CHUNK_TOKENS = 256  # an expert gets a share of them; latents gain, too (models/latent_attention.py)
# Share of free memory that unpacked weights may take.
MAX_DEQUANTIZED_SHARE = 0.6


class CpuBackend(Backend):
    """MLX's CPU build, and NumPy beside it."""

    name, float_bytes = "cpu", 4

    def __init__(self, products: str | None = None) -> None:
        """Args: products: a value of CPU_PRODUCTS; None: MLX runs the layers and experts."""
        self._products = products

    def chunk_tokens(self, config: dict[str, Any]) -> int:
        return MIXTURE_CHUNK_TOKENS if count_experts(config) > 0 else CHUNK_TOKENS

    def should_dequantize(self, shape: ModelShape) -> bool:
        """Quantized products are slow on a CPU: unpack to float32 where that fits the machine."""
        free = free_bytes()
        return free is not None and shape.weights_bytes <= MAX_DEQUANTIZED_SHARE * free

    def dtype(self, stored: Any) -> Any:
        return mx.float32

    def plan(self, parts: StageParts, dtype: Any, **options: Any) -> StageRunner:
        if self._products is not None:
            dense = plan_dense_layers(
                parts, dtype=dtype, dequantize=options["dequantize"], products=self._products
            )
            if dense is not None:
                return DenseLayers(dense, parts.read(dtype, on_module=dense.take, **options), parts.head)
        model = parts.read(dtype, **options)
        place_latents(model.inner, dtype)
        has_experts = self._products is not None and place_experts(model.inner)
        return MlxOnCpu(model, is_async=not has_experts)


class MlxOnCpu(MlxRunner):
    """MLX's layers, some of their parts replaced."""

    compiles_kernels = False
    can_build_ahead = False  # parts that left MLX compute at once
    greedy = None  # MLX's CPU build takes 15 times as long for an argmax as NumPy
    touch = None

    def __init__(self, model: StageModel, *, is_async: bool) -> None:
        super().__init__(model)
        self.is_async = is_async

    def logits(self, hidden: mx.array, rows: Sequence[int], columns: Sequence[int]) -> mx.array:
        if hidden.dtype != mx.float32:
            return super().logits(hidden, rows, columns)
        assert self.model.head is not None, "only the last stage has the head"
        # An operation of MLX changes threads, which takes longer than the copy.
        return self.model.head(mx.array(np.asarray(hidden)[list(rows), list(columns)]))

    def drop_cache(self) -> None:
        """MLX keeps no buffers on a CPU."""
        return
