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
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from config import Settings
from distributed.backends.backend import Backend
from distributed.backends.cpu.threads import ProductThreads
from distributed.backends.stage import Stage
from distributed.ring.frame import Frame
from distributed.ring.handshake import RankInfo, RingPlan
from distributed.ring.ring import HiddenShape, LoopbackRing, MlxRing, Ring
from distributed.ring.watchdog import RankStart, Watchdog
from distributed.utils import shard_and_load

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parent.parent

AnyRing = MlxRing | LoopbackRing


@dataclass(frozen=True)
class Launch:
    """What a rank has when it starts; `threads` multiply, where there is no GPU."""

    start: RankStart
    settings: Settings
    watchdog: Watchdog
    threads: ProductThreads | None = None


def join_ring(launch: Launch) -> AnyRing:
    """Connect to the neighbours; a ring of one has none."""
    start, limit_seconds = launch.start, launch.settings.connect_timeout
    launch.watchdog.enter("connecting", limit_seconds)
    if len(start.hosts) == 1:
        return LoopbackRing(start.epoch)
    return MlxRing(start.rank, list(start.hosts), start.epoch, limit_seconds)


def receive(ring: Ring, watchdog: Watchdog, limit_seconds: float | None) -> tuple[Frame, mx.array | None]:
    """Wait for the next frame; None: as long as it takes, and the watchdog rests meanwhile."""
    watchdog.expect(limit_seconds)
    while not ring.is_readable():
        ring.wait(limit_seconds)
    return ring.recv()


def load_own_stage(launch: Launch, ring: AnyRing, plan: RingPlan, backend: Backend) -> tuple[Stage, RankInfo]:
    """Load this rank's layers and run them once; return the stage and this rank's line of the READY lap."""
    start, watchdog, threads = time.monotonic(), launch.watchdog, launch.threads
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
        keeps_windows=plan.keeps_windows,
        on_progress=watchdog.progress,
    )
    stage = Stage(runner, threads)
    if threads is not None and stage.thread_gain > 1:
        logger.info("products take %d threads while no other rank works", threads.num_alone)
    backend.limit_memory(stage.model.weights_bytes, min(launch.settings.local_ranks, ring.size))
    stage.measure_kv()
    ring.set_hidden_shape(HiddenShape(stage.model.hidden_size, stage.model.dtype))
    # All that was imported and loaded stays: to go through it would hold a step up for 0.07 s (CPython 3.11).
    gc.freeze()
    return stage, describe(launch, stage, backend.name, time.monotonic() - start)


def describe(launch: Launch, stage: Stage, device: str, load_s: float) -> RankInfo:
    """Return this rank's line of the READY lap."""
    start, layers = launch.start, stage.model.layers
    return RankInfo(
        rank=start.rank,
        host=start.host_name or start.hosts[start.rank].rpartition(":")[0] or platform.node(),
        pid=os.getpid(),
        first_layer=layers.start,
        num_layers=len(layers),
        weights_bytes=stage.model.weights_bytes,
        kv_bytes_per_token=stage.kv_bytes_per_token,
        state_bytes_per_row=stage.state_bytes_per_row,
        memory_bytes=launch.watchdog.memory_bytes,
        load_s=round(load_s, 3),
        device=device,
    )
