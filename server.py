"""Builds one rank of the ring and runs its loop. Thin: the work is in distributed/.

Started by the supervisor as `server.py --rank R`, with a start line on standard input
(distributed/ring/watchdog.py), which a rank reads when it has imported what it needs. By hand, without
--rank, it is a ring of one that serves the spool in STATE_DIR.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import logging
import os
import sys

from config import ConfigError, Settings
from config.limits import count_cores, raise_descriptor_limits
from config.live import load_inherited_settings
from config.logs import configure_logging, say, set_level
from distributed.backends.cpu.blas import BlasNotFound, load_fast_blas
from distributed.backends.cpu.threads import ProductThreads
from distributed.backends.mac import drop_fast_synch, keep_awake
from distributed.ring.watchdog import (
    EXIT_CLEAN,
    EXIT_DISK_REFUSED,
    EXIT_REFUSED,
    EXIT_RING_LOST,
    EXIT_SUPERVISOR_GONE,
    RankStart,
    Watchdog,
    read_first_line,
    say_started,
)

logger = logging.getLogger(__name__)


def main(arguments: list[str] | None = None) -> int:
    """Run the rank; returns the process's exit code."""
    parser = argparse.ArgumentParser(
        description="One rank of the ring. Users start it with ./launch.sh start."
    )
    parser.add_argument("--rank", type=int, help="this rank; the supervisor sends the rest on standard input")
    parser.add_argument(
        "--ping-limit", type=float, metavar="S", help="end when the supervisor says nothing for S seconds"
    )
    options = parser.parse_args(arguments)
    try:
        settings = load_inherited_settings()
        configure_logging(settings, process=f"rank {options.rank or 0}")
    except ConfigError as error:
        say(error)
        return EXIT_REFUSED
    try:
        return _serve(settings, options)
    except BlasNotFound as error:
        logger.error("%s", error)
        return EXIT_REFUSED


def _serve(settings: Settings, options: argparse.Namespace) -> int:
    rank: int | None = options.rank
    if rank is not None:
        say_started()
    drop_fast_synch()
    keep_awake()
    if message := raise_descriptor_limits(settings):
        logger.warning("%s", message)
    num_threads, num_alone = _count_threads(settings, rank)
    blas = load_fast_blas(settings.cpu_blas, num_threads)
    # MLX comes after the BLAS, and all of it before the start line, which the last rank waits for.
    gc.disable()  # imports leave no garbage, and Python would look for it all the while
    importlib.import_module("distributed.worker" if rank else "distributed.rank")
    gc.enable()
    start = None
    if rank is not None:
        line = read_first_line(options.ping_limit)
        if not line:
            logger.error("no start line: the supervisor is gone, or rank %d was not started by one", rank)
            return EXIT_SUPERVISOR_GONE
        try:
            start = _check_start(line, rank)
        except ValueError as error:
            logger.error("rank %d was not started by a supervisor: %s", rank, error)
            return EXIT_REFUSED
    logger.info("BLAS: %s, %d threads", blas or "as MLX brings it", num_threads)
    ping_limit_s = start.ping_limit_s if start else None
    watchdog = Watchdog(rank or 0, has_supervisor=rank is not None, ping_limit_s=ping_limit_s)
    watchdog.on_settings(lambda values: set_level(values.get("LOG_LEVEL")))
    watchdog.start()
    threads = ProductThreads(num_threads, num_alone) if sys.platform == "linux" else None
    return _run(start, settings, watchdog, threads)


def _count_threads(settings: Settings, rank: int | None) -> tuple[int, int]:
    """BLAS threads, and how many while no other rank has work: as set, else a share of the cores, and all."""
    if settings.blas_threads != "auto":
        return int(settings.blas_threads), int(settings.blas_threads)
    num_cores = count_cores()
    return max(1, num_cores // (1 if rank is None else settings.local_ranks)), num_cores


def _run(
    start: RankStart | None, settings: Settings, watchdog: Watchdog, threads: ProductThreads | None
) -> int:
    from distributed.planning.checkpoint import ModelError
    from distributed.ring.handshake import RefusedStart
    from distributed.ring.ring import RingLost

    try:
        if start is None or start.rank == 0:
            return _run_rank0(start, settings, watchdog, threads)
        from distributed.worker import serve_worker

        serve_worker(start, settings, watchdog, threads)
    except RingLost as error:
        logger.error("the ring is lost: %s", error)
        return EXIT_RING_LOST
    except (RefusedStart, ModelError, ConfigError) as error:
        logger.error("%s", error)
        return EXIT_REFUSED
    return EXIT_CLEAN


def _run_rank0(
    start: RankStart | None, settings: Settings, watchdog: Watchdog, threads: ProductThreads | None
) -> int:
    from distributed.rank import open_spool, serve_rank0
    from spool import SpoolError, SpoolUnavailable

    try:
        with open_spool(settings) as owner:
            start = start or RankStart(owner.next_epoch(), 0, ("127.0.0.1:0",), "")
            serve_rank0(start, settings, watchdog, owner, threads)
    except SpoolUnavailable as error:
        logger.error("%s", error)
        return EXIT_DISK_REFUSED
    except SpoolError as error:
        logger.error("%s", error)
        return EXIT_REFUSED
    return EXIT_CLEAN


def _check_start(line: str, rank: int) -> RankStart:
    start = RankStart.from_line(line)
    if start.rank != rank:
        raise ValueError(f"started as rank {rank}, but the start line says rank {start.rank}")
    if rank >= len(start.hosts):
        raise ValueError(f"there is no rank {rank} in a ring of {len(start.hosts)}")
    return start


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    # After a ring error MLX's threads hang for ever in the interpreter's normal exit (mlx 0.32.4).
    os._exit(code)
