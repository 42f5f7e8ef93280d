"""What every rank does at its start: join the ring, load its layers, say who it is.

Knows no requests, no spool and no tokenizer, so that a rank behind rank 0 imports none. Every wait in here is
under a limit of the watchdog.
"""

from __future__ import annotations

import gc
import logging
import os
import platform
import time
from pathlib import Path

from config import Settings
from distributed.backends.backend import Backend
from distributed.backends.cpu.threads import ProductThreads
from distributed.backends.stage import Stage
from distributed.ring.handshake import RankInfo, RingPlan
from distributed.ring.ring import HiddenShape, LoopbackRing, MlxRing
from distributed.ring.watchdog import RankStart, Watchdog
from distributed.utils import shard_and_load

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parent.parent

AnyRing = MlxRing | LoopbackRing


def join_ring(start: RankStart, settings: Settings, watchdog: Watchdog) -> AnyRing:
    """Connect to the neighbours; a ring of one has none."""
    watchdog.enter("connecting", settings.connect_timeout)
    if len(start.hosts) == 1:
        return LoopbackRing(start.epoch)
    return MlxRing(start.rank, list(start.hosts), start.epoch, settings.connect_timeout)


def load_own_stage(
    ring: AnyRing,
    plan: RingPlan,
    backend: Backend,
    watchdog: Watchdog,
    threads: ProductThreads | None,
    num_local_ranks: int,
) -> tuple[Stage, float]:
    """Load this rank's layers and run them once; returns the stage and the seconds it took."""
    start = time.monotonic()
    if backend.held_bytes is not None:
        watchdog.count_memory_by(backend.held_bytes)
    backend.limit_memory()
    runner = shard_and_load(
        Path(plan.model_folder),
        ring.rank,
        ring.size,
        layers=plan.ranges,
        backend=backend,
        dequantize=plan.dequantize,
        on_progress=watchdog.progress,
    )
    stage = Stage(runner, threads)
    if threads is not None and stage.thread_gain > 1:
        logger.info("products take %d threads while no other rank works", threads.num_alone)
    backend.limit_memory(stage.model.weights_bytes, min(num_local_ranks, ring.size))
    stage.measure_kv()
    ring.set_hidden_shape(HiddenShape(stage.model.hidden_size, stage.model.dtype))
    # All that was imported and loaded stays: to go through it would hold a step up for 0.07 s (CPython 3.11).
    gc.freeze()
    return stage, time.monotonic() - start


def describe(
    ring: AnyRing,
    plan: RingPlan,
    backend: Backend,
    stage: Stage,
    watchdog: Watchdog,
    start: RankStart,
    load_s: float,
) -> RankInfo:
    layers = plan.layers_of(ring.rank)
    return RankInfo(
        rank=ring.rank,
        host=start.host_name or start.hosts[ring.rank].rpartition(":")[0] or platform.node(),
        pid=os.getpid(),
        first_layer=layers.start,
        num_layers=len(layers),
        weights_bytes=stage.model.weights_bytes,
        kv_bytes_per_token=stage.kv_bytes_per_token,
        memory_bytes=watchdog.memory_bytes,
        load_s=round(load_s, 3),
        device=backend.name,
    )
