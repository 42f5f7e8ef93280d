"""The memory of this machine: what is free, and whether a model fits.

On a Mac the limit is what Metal lets the GPU use. What is free there says little: macOS makes room for the
GPU by compressing other programs' memory, so a lack of it is only warned of. Elsewhere the limit is what is
free. Knows nothing of the ring.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import psutil

from config import Settings
from distributed.planning.capacities import RANK_BYTES, HostCapacity, attention_bytes, make_reserve
from distributed.planning.layer_plan import DoesNotFit, needs_of
from distributed.planning.model_shape import ModelShape

logger = logging.getLogger(__name__)


def free_bytes() -> int | None:
    """Return what is free or given up at need; None where the system does not tell."""
    try:
        return int(psutil.virtual_memory().available)
    except (psutil.Error, RuntimeError, SystemError, OSError):  # macOS: psutil issues 1901, 2116
        return None


def check_memory(
    settings: Settings, shape: ModelShape, layers: Sequence[range], gpu_limit: int | None
) -> None:
    """All ranks are on this machine: refuse weights that it cannot hold, before reading them.

    KV is not taken at the start, and short texts never need all of the reserve: too large a one is only told.

    Args:
        gpu_limit: bytes that the GPU may use; None: what is free counts.

    Raises:
        DoesNotFit: with the numbers.
    """
    free = free_bytes()
    beside = RANK_BYTES + attention_bytes(settings, shape)
    usable = free if gpu_limit is None else gpu_limit - beside * len(layers)
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


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB"
