"""The peer: `mlx_lm.server --pipeline` on an MLX ring of the same size, each rank started by hand.

By hand, because mlx.launch takes a core for itself (mlx 0.32.4). It gets the same model folder, BLAS and
threads as ours, no seeds (a seed ends its batching), warm weights before the clock starts, and the settings
in `best_flags`. Its ranks spin on their cores when idle, so it must be stopped while anything else is timed.
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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.contender import ROOT, BenchError, last_lines, uninterrupted
from bench.dialects import OpenAIChat
from bench.ground import Ground
from bench.load import Server
from bench.ours import read_blas
from cluster.ports import free_ring_ports

HOST = "127.0.0.1"
LISTEN_LIMIT_S = 120.0
LOOK_INTERVAL_S = 0.1
END_GRACE_S = 3.0


def best_flags(num_clients: int) -> dict[str, tuple[str, str]]:
    """The peer's settings with their reasons; the rest are its defaults.

    Tried with mlx-lm 0.32.2, SmolLM2-135M in float32, mkl, two ranks on two cores.
    """
    return {
        "--decode-concurrency": (str(max(32, num_clients)), "all clients in one batch"),
        "--prompt-concurrency": ("8", "its default; 16 and 32 were no faster"),
        "--prefill-step-size": ("128", "first token of a long prompt in half the time of its default, 2048"),
        "--prompt-cache-size": ("10", "its default; 1 was no faster"),
        "--log-level": ("WARNING", "no line for each request"),
    }


class MlxLmPipeline:
    """mlx_lm.server --pipeline; rank 0 alone listens."""

    name = "mlx_lm.server"

    def __init__(self, ground: Ground, num_clients: int) -> None:
        """
        Args:
            num_clients: the most that will ask at once.
        """
        self._ground = ground
        self.flags = best_flags(num_clients)
        self.blas = ""

    @contextmanager
    def running(self) -> Iterator[Server]:
        """Start all ranks, wait until rank 0 listens, and end them whatever happens.

        It listens before its model is loaded: the first answer is the sign that it is ready.

        Raises:
            BenchError: a rank ended, or rank 0 does not listen.
        """
        folder = Path(tempfile.mkdtemp(prefix="peer-", dir=self._ground.folder))
        port, *ring_ports = free_ring_ports(HOST, 1 + self._ground.num_ranks)
        hostfile = folder / "hosts.json"
        hostfile.write_text(json.dumps([[f"{HOST}:{ring_port}"] for ring_port in ring_ports]))
        ranks: list[subprocess.Popen[bytes]] = []
        try:
            for rank in range(self._ground.num_ranks):
                # One by one, so that a failure finds in the list what was started before it.
                ranks.append(self._start_rank(rank, port, hostfile))  # noqa: PERF401 - see above
            _wait_for_listener(port, ranks, folder)
            self.blas = read_blas(folder)
            yield Server(HOST, port, OpenAIChat())
        finally:
            with uninterrupted():
                _end(ranks)
            shutil.rmtree(folder, ignore_errors=True)

    def describe(self) -> Mapping[str, Any]:
        """For the report."""
        shown = {key: {"value": value, "reason": reason} for key, (value, reason) in self.flags.items()}
        return {"name": "mlx_lm.server --pipeline", "blas": self.blas, "flags": shown}

    def _start_rank(self, rank: int, port: int, hostfile: Path) -> subprocess.Popen[bytes]:
        ground = self._ground
        chosen = [word for flag, (value, _) in self.flags.items() for word in (flag, value)]
        place = ["--model", str(ground.model_folder), "--host", HOST, "--port", str(port), "--pipeline"]
        with (hostfile.parent / f"rank{rank}.log").open("wb") as log:
            return subprocess.Popen(
                [
                    *(sys.executable, "-m", "bench.peer_rank", ground.blas, str(ground.num_blas_threads)),
                    *place,
                    *chosen,
                ],
                cwd=ROOT,
                env={**os.environ, "MLX_RANK": str(rank), "MLX_HOSTFILE": str(hostfile)},
                stdin=subprocess.PIPE,  # its end tells the rank that we are gone
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )


def _wait_for_listener(port: int, ranks: list[subprocess.Popen[bytes]], folder: Path) -> None:
    deadline = time.monotonic() + LISTEN_LIMIT_S
    while time.monotonic() < deadline:
        ended = [rank for rank, process in enumerate(ranks) if process.poll() is not None]
        if ended:
            logs = [folder / f"rank{rank}.log" for rank in ended]
            raise BenchError(f"rank {ended[0]} of the peer ended. {last_lines(logs)}")
        try:
            socket.create_connection((HOST, port), timeout=1.0).close()
        except OSError:
            time.sleep(LOOK_INTERVAL_S)  # nothing tells us when a stranger's server listens
        else:
            return
    raise BenchError(
        f"the peer does not listen after {LISTEN_LIMIT_S:g} s. {last_lines([folder / 'rank0.log'])}"
    )


def _end(ranks: list[subprocess.Popen[bytes]]) -> None:
    """SIGTERM, then SIGKILL; all are gone and reaped when this returns."""
    for process in ranks:
        process.terminate()
    for process in ranks:
        try:
            process.wait(timeout=END_GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdin is not None:
            process.stdin.close()
