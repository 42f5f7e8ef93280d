"""The peer: `mlx_lm.server --pipeline` on a ring started by hand, with its best and its default flags.

This is the fastest way to run it: mlx.launch takes a core for itself (mlx 0.32.4), and its ranks run with the
BLAS that MLX includes. The peer gets the same model folder, ring size, BLAS and threads as ours. Its idle
ranks spin on their cores, so the bench stops them while it measures another server.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.client import Server
from bench.service import HOST, read_blas, uninterrupted
from bench.setup import BenchError, Setup
from cluster.ports import free_ring_ports
from config import REPOSITORY_ROOT

PEER = "mlx_lm.server"
DEFAULT_PEER = "mlx_lm.server, default flags"
LISTEN_LIMIT_S = 120.0
LOOK_INTERVAL_S = 0.1
NUM_LOG_LINES = 15
DEFAULT_FLAGS = {"--log-level": "WARNING"}


def best_flags(num_clients: int) -> dict[str, str]:
    """The fastest flags of mlx-lm 0.32.2 with SmolLM2-135M in float32, mkl, two ranks on two cores."""
    return {
        **DEFAULT_FLAGS,
        "--decode-concurrency": str(max(32, num_clients)),  # all clients in one batch
        # A long prompt takes half the time of the default, 2048. Other values of --prompt-concurrency and
        # --prompt-cache-size were no faster than the defaults.
        "--prefill-step-size": "128",
    }


class Peer:
    """mlx_lm.server for at most `num_clients` at once; on a ring only rank 0 listens."""

    def __init__(self, setup: Setup, num_clients: int, *, has_default_flags: bool = False) -> None:
        self._setup, self.blas = setup, ""
        self.name = DEFAULT_PEER if has_default_flags else PEER
        self.flags = DEFAULT_FLAGS if has_default_flags else best_flags(num_clients)

    @contextmanager
    def running(self) -> Iterator[Server]:
        """Start all ranks, wait until rank 0 listens, and end them in any case.

        It listens before it has loaded its model: its first answer shows that it is ready.

        Raises:
            BenchError: a rank ended, or rank 0 does not listen.
        """
        folder = Path(tempfile.mkdtemp(prefix="peer-", dir=self._setup.folder))
        port, *ring_ports = free_ring_ports(HOST, 1 + self._setup.num_ranks)
        hostfile = folder / "hosts.json"
        hostfile.write_text(json.dumps([[f"{HOST}:{ring_port}"] for ring_port in ring_ports]))
        ranks: list[subprocess.Popen[bytes]] = []
        try:
            for rank in range(self._setup.num_ranks):
                # One by one, so that after a failure the list has all ranks that were started.
                ranks.append(self._start_rank(rank, port, hostfile))  # noqa: PERF401 - see above
            _wait_for_listener(port, ranks, folder)
            self.blas = read_blas(folder)
            yield Server(HOST, port)
        finally:
            with uninterrupted():
                _end(ranks)
            shutil.rmtree(folder, ignore_errors=True)

    def describe(self) -> dict[str, Any]:
        """The ring and flags, for the report."""
        ranks = self._setup.num_ranks
        return {"name": self.name, "num_ranks": ranks, "blas": self.blas, "settings": self.flags}

    def _start_rank(self, rank: int, port: int, hostfile: Path) -> subprocess.Popen[bytes]:
        setup = self._setup
        environment, ring_flags = dict(os.environ), []
        if setup.num_ranks > 1:
            environment |= {"MLX_RANK": str(rank), "MLX_HOSTFILE": str(hostfile)}
            ring_flags = ["--pipeline"]
        command = [
            *(sys.executable, "-m", "bench.peer_rank", setup.settings.cpu_blas, str(setup.num_threads)),
            *("--model", str(setup.model_folder), "--host", HOST, "--port", str(port)),
            *ring_flags,
            *(word for pair in self.flags.items() for word in pair),
        ]
        with (hostfile.parent / f"rank{rank}.log").open("wb") as file:
            return subprocess.Popen(
                command,
                cwd=REPOSITORY_ROOT,
                env=environment,
                stdin=subprocess.PIPE,  # its end of file ends the rank when we are gone
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )


def _wait_for_listener(port: int, ranks: list[subprocess.Popen[bytes]], folder: Path) -> None:
    deadline = time.monotonic() + LISTEN_LIMIT_S
    while time.monotonic() < deadline:
        for rank, process in enumerate(ranks):
            if process.poll() is not None:
                raise BenchError(f"rank {rank} of the peer ended. {_last_lines(folder, rank)}")
        try:
            socket.create_connection((HOST, port), timeout=1.0).close()
        except OSError:
            time.sleep(LOOK_INTERVAL_S)
        else:
            return
    raise BenchError(f"the peer does not listen after {LISTEN_LIMIT_S:g} s. {_last_lines(folder, 0)}")


def _last_lines(folder: Path, rank: int) -> str:
    """The end of a rank's log, for an error."""
    path = folder / f"rank{rank}.log"
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[-NUM_LOG_LINES:]
    return "\n".join([f"The last lines of {path}:", *(f"    {line}" for line in lines)])


def _end(ranks: list[subprocess.Popen[bytes]]) -> None:
    """Kill and reap all; they have nothing to save."""
    for process in ranks:
        process.kill()
    for process in ranks:
        process.communicate()
