"""MLX on its GPU: the model's own layers, in the type they are stored in.

The limit of memory is what Metal lets the GPU use.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import mlx.core as mx

from distributed.backends.backend import Backend, Greedy, StageRunner
from distributed.backends.keep_warm import touch_gpu
from distributed.backends.kv_cache import KVTable
from distributed.backends.state_cache import MixedTable
from distributed.models.general import StageParts
from distributed.planning.families.hybrids import CacheKind
from distributed.planning.model_shape import ModelShape
from distributed.planning.step import StageStep
from prompts.mlx_lm_import import import_mlx_lm

switch_layers = import_mlx_lm("models.switch_layers")

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
        model = parts.read(dtype, **options)
        for _, module in model.inner.named_modules():
            if type(module) is switch_layers.QuantizedSwitchLinear:
                module.__class__ = IndexedSwitchLinear
        return MlxRunner(model)

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


class IndexedSwitchLinear(switch_layers.QuantizedSwitchLinear):  # type: ignore[name-defined]
    """mlx-lm's products of experts, with the index of their inputs made once for each size.

    Left out, MLX makes it anew for each product (mlx 0.32.4 ops.cpp, gather_qmm).
    """

    def __call__(self, x: mx.array, indices: mx.array, sorted_indices: bool = False) -> mx.array:
        product: mx.array = mx.gather_qmm(
            x,
            self["weight"],
            self["scales"],
            self.get("biases"),
            lhs_indices=_count_up(x.shape[:-2]),
            rhs_indices=indices,
            transpose=True,
            group_size=self.group_size,
            bits=self.bits,
            mode=self.mode,
            global_scale=self.global_scale,
            sorted_indices=sorted_indices,
        )
        return product + mx.expand_dims(self["bias"][indices], -2) if "bias" in self else product


@lru_cache(maxsize=256)
def _count_up(shape: tuple[int, ...]) -> mx.array:
    return mx.arange(math.prod(shape), dtype=mx.uint32).reshape(shape)


def greedy_on_gpu(logits: mx.array) -> mx.array:
    """Only ids leave the GPU. A maximum alone may pass over NaN."""
    is_finite = mx.isfinite(mx.max(logits, axis=-1)) & ~mx.any(mx.isnan(logits), axis=-1)
    return mx.where(is_finite, mx.argmax(logits, axis=-1).astype(mx.int32), -1)


def _by_kind(caches: list[Any], layers: range, kinds: tuple[tuple[CacheKind, ...], ...]) -> list[Any]:
    """Return the caches of the places that have one; where layers pass through, an own one of that kind.

    What a stage asks a cache of a kind for that it does not own, a mask, no layer of it uses: any will do.
    """
    own = {kinds[place]: caches[place] for place in layers}
    spare = next((cache for cache in caches if cache is not None), None)
    return [
        caches[place] if place in layers else own.get(kind, spare) for place, kind in enumerate(kinds) if kind
    ]


class MlxRunner(StageRunner):
    """The model's own layers and head."""

    compiles_kernels = is_async = can_build_ahead = True
    greedy: Greedy | None = staticmethod(greedy_on_gpu)
    touch: Callable[[], None] | None = staticmethod(touch_gpu)

    def make_table(self) -> KVTable:
        layers, kinds = self.model.layers, self.model.kinds
        if kinds is None:
            return KVTable(len(layers), self.submit, self.model.windows)
        return MixedTable(kinds[layers.start : layers.stop], self.submit, self.model.windows)

    def forward(self, x: mx.array, begun: Any) -> mx.array:
        layers, num_places = self.model.layers, len(self.model.inner.layers)
        # One cache a place; those that are passed through ask theirs for a mask at most.
        caches = [*begun[:1] * layers.start, *begun, *begun[:1] * (num_places - layers.stop)]
        if self.model.kinds is not None:
            caches = _by_kind(caches, layers, self.model.kinds)
        hidden: mx.array = self.model.inner(x, cache=caches)
        return hidden

    def logits(self, hidden: mx.array, rows: Sequence[int], columns: Sequence[int]) -> mx.array:
        assert self.model.head is not None, "only the last stage has the head"
        if hidden.shape[1] == 1 and len(rows) == hidden.shape[0]:
            return self.model.head(hidden[:, 0])
        return self.model.head(hidden[mx.array(rows), mx.array(columns)])

    def build_ahead(
        self, x: mx.array, table: KVTable, step: StageStep
    ) -> tuple[mx.array, Callable[[], None]]:
        begun, take_back = table.begin_ahead(step)
        return self.forward(x, begun), take_back

    def drop_cache(self) -> None:
        mx.clear_cache()
