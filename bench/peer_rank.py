"""One rank of a peer: loads the fast BLAS first, then runs mlx_lm.server as its console script does.

    python -m bench.peer_rank BLAS THREADS SERVER-FLAG …      with MLX_RANK and MLX_HOSTFILE set

mlx_lm.server does not load the BLAS that our ranks load, and is many times slower without it on Linux. End of
file on standard input ends the process: a rank of MLX's ring would otherwise spin on its core for ever.
"""

from __future__ import annotations

import os
import sys
import threading


def main(arguments: list[str]) -> None:
    """Run the rank; returns only when the server does."""
    # Imported here: the BLAS must load before any module that imports MLX.
    from distributed.backends.cpu.blas import load_fast_blas

    blas, num_threads, *flags = arguments
    loaded = load_fast_blas(blas, int(num_threads))
    print(f"BLAS: {loaded or 'as MLX brings it'}, {num_threads} threads", flush=True)
    threading.Thread(target=_end_with_parent, daemon=True).start()

    from mlx_lm import server

    sys.argv = ["mlx_lm.server", *flags]
    server.main()


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(5)


if __name__ == "__main__":
    main(sys.argv[1:])
