"""The memory of this machine as a rank may use it: what it can hold, what MLX holds and keeps for reuse.

On a Mac the limit is what Metal lets the GPU use. What is free there says little: macOS makes room for the
GPU by compressing other programs' memory, so a lack of it is only warned of. Elsewhere the limit is what is
free. Knows nothing of the ring.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import mlx.core as mx
import psutil

from config import Settings
from distributed.planning.capacities import RANK_BYTES, HostCapacity, make_reserve
from distributed.planning.layer_plan import DoesNotFit, needs_of
from distributed.planning.model_shape import ModelShape

# Buffers that MLX keeps for reuse. Its own limit is most of the memory, and on a Mac they count as wired.
MAX_CACHE_BYTES = 1 << 30
# KV comes first: the cache gets so much of what a rank's weights leave.
CACHE_SHARE = 0.125

logger = logging.getLogger(__name__)


def has_gpu() -> bool:
    """True if MLX computes on a GPU."""
    return bool(mx.default_device().type == mx.DeviceType.gpu)


def gpu_limit_bytes() -> int | None:
    """Return what Metal lets the GPU use; None without Metal."""
    if not has_gpu():
        return None
    limit = mx.device_info().get("max_recommended_working_set_size")
    return None if limit is None else int(limit)


def free_bytes() -> int | None:
    """Return what is free or given up at need; None where the system does not tell."""
    try:
        return int(psutil.virtual_memory().available)
    except (psutil.Error, RuntimeError, SystemError, OSError):  # macOS: psutil issues 1901, 2116
        return None


def check_memory(settings: Settings, shape: ModelShape, layers: Sequence[range]) -> None:
    """All ranks are on this machine: refuse weights that it cannot hold, before reading them.

    KV is not taken at the start, and short texts never need all of the reserve: too large a one is only told.

    Raises:
        DoesNotFit: with the numbers.
    """
    gpu_limit, free = gpu_limit_bytes(), free_bytes()
    usable = free if gpu_limit is None else gpu_limit - RANK_BYTES * len(layers)
    if usable is None:
        return
    kv = make_reserve(settings, len(layers))
    (need,) = needs_of(shape, [HostCapacity(num_ranks=len(layers), memory_bytes=usable)], layers, kv)
    whose = "free" if gpu_limit is None else "that its GPU may use"
    if need.weights_bytes > usable:
        raise DoesNotFit(
            f"the model's weights take {_gib(need.weights_bytes)}, this machine has {_gib(usable)} {whose}"
        )
    if not need.fits:
        logger.warning(
            "weights (%s) and KV_CACHE_RESERVED_MEMORY_MB for %d ranks (%s) are more than the %s %s: lower "
            "it, or many long texts will be too much for this machine",
            *(_gib(need.weights_bytes), len(layers), _gib(need.kv_bytes), _gib(usable), whose),
        )
    elif free is not None and need.needs_bytes > free:
        logger.warning(
            "weights and KV may take %s and %s are free now: macOS compresses or swaps out what other "
            "programs hold; close some if this Mac becomes slow",
            *(_gib(need.needs_bytes), _gib(free)),
        )


def can_unpack(unpacked_bytes: int, max_share: float) -> bool:
    """True if weights unpacked to float32 take no more than a share of what is free."""
    free = free_bytes()
    return free is not None and unpacked_bytes <= max_share * free


def held_bytes() -> int:
    """Return what MLX holds: arrays, and buffers kept for reuse. RSS lacks what only the GPU touched."""
    return int(mx.get_active_memory() + mx.get_cache_memory())


def raise_wired_limit() -> None:
    """Let Metal keep the weights in memory (mlx_lm 0.32.2 utils.py, maybe_set_recommended_wired_limit)."""
    limit = gpu_limit_bytes()
    if limit is not None:
        mx.set_wired_limit(limit)


def limit_cache(weights_bytes: int = 0, num_ranks: int = 1) -> None:
    """Let MLX keep no more buffers than are of use, on a GPU; elsewhere it keeps none.

    Args:
        weights_bytes: of this rank.
        num_ranks: on this machine.
    """
    if not has_gpu():
        return
    limit = gpu_limit_bytes()
    left = MAX_CACHE_BYTES if limit is None else CACHE_SHARE * max(0, limit // num_ranks - weights_bytes)
    mx.set_cache_limit(int(min(MAX_CACHE_BYTES, left)))


def drop_cache() -> None:
    """Give back the buffers that MLX keeps, on a GPU."""
    if has_gpu():
        mx.clear_cache()


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB"
