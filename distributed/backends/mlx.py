"""MLX on its GPU: the model's own layers, in the type they are stored in.

The limit of memory is what Metal lets the GPU use.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from distributed.backends.backend import Backend, Greedy, StageRunner
from distributed.backends.kv_cache import KVTable
from distributed.models.general import StageParts
from distributed.planning.model_shape import ModelShape

CHUNK_TOKENS = 512
# Buffers that MLX keeps for reuse. Its own limit is most of the memory, and on a Mac they count as wired.
MAX_CACHE_BYTES = 1 << 30
# KV comes first: the cache gets so much of what a rank's weights leave.
CACHE_SHARE = 0.125


class MlxBackend(Backend):
    """A GPU that MLX computes on."""

    name, float_bytes = "gpu", None

    def chunk_tokens(self, config: dict[str, Any]) -> int:
        return CHUNK_TOKENS

    def should_dequantize(self, shape: ModelShape) -> bool:
        return False

    def dtype(self, stored: Any) -> Any:
        return stored

    def plan(self, parts: StageParts, dtype: Any, **options: Any) -> StageRunner:
        return MlxRunner(parts.read(dtype, **options))

    def held_bytes(self) -> int:
        """Return what MLX holds: arrays, and buffers kept for reuse. RSS lacks what only the GPU touched."""
        return int(mx.get_active_memory() + mx.get_cache_memory())

    def limit_bytes(self) -> int | None:
        limit = mx.device_info().get("max_recommended_working_set_size")
        return None if limit is None else int(limit)

    def limit_memory(self, weights_bytes: int = 0, num_ranks: int = 1) -> None:
        limit, cache_bytes = self.limit_bytes(), float(MAX_CACHE_BYTES)
        if limit is not None:
            # as mlx_lm 0.32.2 utils.py, maybe_set_recommended_wired_limit
            mx.set_wired_limit(limit)
            cache_bytes = CACHE_SHARE * max(0, limit // num_ranks - weights_bytes)
        mx.set_cache_limit(int(min(MAX_CACHE_BYTES, cache_bytes)))


def greedy_on_gpu(logits: mx.array) -> list[int | None]:
    """Only ids leave the GPU; -1 for a row that is not finite. A maximum alone may pass over NaN."""
    is_finite = mx.isfinite(mx.max(logits, axis=-1)) & ~mx.any(mx.isnan(logits), axis=-1)
    best = mx.where(is_finite, mx.argmax(logits, axis=-1).astype(mx.int32), -1)
    return [int(token) if token >= 0 else None for token in best.tolist()]


class MlxRunner(StageRunner):
    """The model's own layers and head."""

    compiles_kernels = True
    is_async = True
    greedy: Greedy | None = staticmethod(greedy_on_gpu)

    def make_table(self) -> KVTable:
        return KVTable(len(self.model.layers))

    def forward(self, x: mx.array, begun: Any) -> mx.array:
        hidden: mx.array = self.model.inner(x, begun)
        return hidden

    def logits(self, hidden: mx.array, rows: Sequence[int], columns: Sequence[int]) -> mx.array:
        assert self.model.head is not None, "only the last stage has the head"
        if hidden.shape[1] == 1 and len(rows) == hidden.shape[0]:
            return self.model.head(hidden[:, 0])
        return self.model.head(hidden[mx.array(rows), mx.array(columns)])

    def drop_cache(self) -> None:
        mx.clear_cache()
