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
from distributed.backends.cpu.threads import ProductThreads
from distributed.backends.memory import has_gpu, held_bytes, limit_cache, raise_wired_limit
from distributed.backends.simulated import is_simulated, load_simulated_stage
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
    ring: AnyRing, plan: RingPlan, watchdog: Watchdog, threads: ProductThreads | None, num_local_ranks: int
) -> tuple[Stage, float]:
    """Load this rank's layers and run them once; returns the stage and the seconds it took."""
    start = time.monotonic()
    if has_gpu():
        watchdog.count_memory_by(held_bytes)
    limit_cache()
    raise_wired_limit()
    folder = Path(plan.model_folder)
    if is_simulated(folder):
        stage = _load_simulated(folder, ring, plan)
    else:
        stage = _load_model(folder, ring, plan, watchdog, None if has_gpu() else threads)
    limit_cache(stage.model.weights_bytes, min(num_local_ranks, ring.size))
    stage.measure_kv()
    ring.set_hidden_shape(HiddenShape(stage.model.hidden_size, stage.model.dtype))
    # All that was imported and loaded stays: to go through it would hold a step up for 0.07 s (CPython 3.11).
    gc.freeze()
    return stage, time.monotonic() - start


def _load_simulated(folder: Path, ring: AnyRing, plan: RingPlan) -> Stage:
    layers = plan.layers_of(ring.rank)
    return load_simulated_stage(folder, layers, rank=ring.rank, ring_size=ring.size)


def _load_model(
    folder: Path, ring: AnyRing, plan: RingPlan, watchdog: Watchdog, threads: ProductThreads | None
) -> Stage:
    model = shard_and_load(
        folder,
        ring.rank,
        ring.size,
        layers=plan.ranges,
        dequantize=plan.dequantize,
        dtype=plan.dtype,
        cpu_products=None if has_gpu() else plan.cpu_products,
        on_progress=watchdog.progress,
    )
    stage = Stage(model, threads)
    if threads is not None and stage.thread_gain > 1:
        logger.info("products take %d threads while no other rank works", threads.num_alone)
    return stage


def describe(
    ring: AnyRing, plan: RingPlan, stage: Stage, watchdog: Watchdog, start: RankStart, load_s: float
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
        device="gpu" if has_gpu() else "cpu",
    )
