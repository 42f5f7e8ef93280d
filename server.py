"""Builds one rank of the ring and runs its loop. Thin: the work is in distributed/.

Started by the supervisor as `server.py --rank R`, with a start line on standard input
(distributed/lifeline.py). By hand, without --rank, it is a ring of one that serves the spool in STATE_DIR.
"""

from __future__ import annotations

import argparse
import logging
import os
import resource
import sys

from config import ConfigError, Settings, load_settings
from config.limits import raise_descriptor_limits
from config.logs import configure_logging
from distributed.blas import BlasNotFound, load_fast_blas
from distributed.lifeline import EXIT_CLEAN, EXIT_REFUSED, EXIT_RING_LOST, Lifeline, RankStart

logger = logging.getLogger(__name__)


def main(arguments: list[str] | None = None) -> int:
    """Run the rank; returns the process's exit code."""
    parser = argparse.ArgumentParser(
        description="One rank of the ring. Users start it with ./launch.sh start."
    )
    parser.add_argument("--rank", type=int, help="this rank; the supervisor sends the rest on standard input")
    rank = parser.parse_args(arguments).rank
    try:
        settings = load_settings()
    except ConfigError as error:
        print(error, file=sys.stderr)
        return EXIT_REFUSED
    configure_logging(settings, process=f"rank {rank or 0}")
    try:
        return _serve(settings, rank)
    except BlasNotFound as error:
        logger.error("%s", error)
        return EXIT_REFUSED


def _serve(settings: Settings, rank: int | None) -> int:
    lifeline = Lifeline(rank or 0, has_supervisor=rank is not None)
    start = _read_start(rank)
    num_threads = (os.cpu_count() or 1) if settings.blas_threads == "auto" else int(settings.blas_threads)
    blas = load_fast_blas(settings.cpu_blas, num_threads)
    logger.info("BLAS: %s, %d threads", blas or "as MLX brings it", num_threads)
    lifeline.start()
    if not _import_mlx_lm(settings):
        return EXIT_REFUSED

    from distributed.checkpoint import ModelError
    from distributed.handshake import RefusedStart
    from distributed.rank import open_spool, serve_rank0, serve_worker
    from distributed.ring import RingLost
    from spool import SpoolError

    try:
        if start is not None and start.rank:
            serve_worker(start, settings, lifeline)
        else:
            with open_spool(settings) as owner:
                start = start or RankStart(owner.next_epoch(), 0, ("127.0.0.1:0",), "")
                serve_rank0(start, settings, lifeline, owner)
    except RingLost as error:
        logger.error("the ring is lost: %s", error)
        return EXIT_RING_LOST
    except (RefusedStart, ModelError, ConfigError, SpoolError) as error:
        logger.error("%s", error)
        return EXIT_REFUSED
    return EXIT_CLEAN


def _import_mlx_lm(settings: Settings) -> bool:
    """Import mlx_lm, which sets this process's descriptor limits to 2048 and 4096 (mlx_lm 0.32.2 utils.py).

    It fails where the hard limit is lower, and lowers a higher one for good: what is left is used and told.
    """
    raise_descriptor_limits(settings)
    try:
        import mlx_lm  # noqa: F401
    except ValueError:
        logger.error(
            "mlx_lm needs a hard limit of 4096 open files, this process has %d: try `ulimit -Hn 4096`",
            resource.getrlimit(resource.RLIMIT_NOFILE)[1],
        )
        return False
    message = raise_descriptor_limits(settings)
    if message:
        logger.warning("%s", message)
    return True


def _read_start(rank: int | None) -> RankStart | None:
    if rank is None:
        return None
    start = RankStart.from_line(sys.stdin.readline())
    if start.rank != rank:
        raise SystemExit(f"started as rank {rank}, but the supervisor says rank {start.rank}")
    return start


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    # After a ring error MLX's threads hang for ever in the interpreter's normal exit (mlx 0.32.4).
    os._exit(code)
