"""What a rank does before MLX is imported: keeps its Mac awake, and takes out one setting of MLX's.

Knows no MLX and no ring. On other systems nothing is started.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys

# With it, a peer that is lost can lock the GPU until the Mac is restarted (mlx issue 3830).
FAST_SYNCH = "MLX_METAL_FAST_SYNCH"

logger = logging.getLogger(__name__)


def drop_fast_synch() -> None:
    """Take MLX_METAL_FAST_SYNCH out of this process's environment; MLX reads it when first used."""
    if os.environ.pop(FAST_SYNCH, None) is not None:
        logger.warning("%s is not used: with it, a rank that is lost can lock the GPU", FAST_SYNCH)


def keep_awake() -> int | None:
    """Keep a Mac from sleeping while this process lives; the pid of what does it, None where nothing can.

    caffeinate ends by itself when we do. It has neither our pipes nor our environment, so that nobody waits
    for it or takes it for a process of the service.
    """
    program = shutil.which("caffeinate") if sys.platform == "darwin" else None
    if program is None:
        return None
    null = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in (0, 1, 2)]
    words = [program, "-ims", "-w", str(os.getpid())]
    try:
        return os.posix_spawn(program, words, {}, file_actions=null, setpgroup=0)
    except OSError as error:
        logger.info("%s cannot be started (%s): a Mac that sleeps is away", program, error)
        return None
