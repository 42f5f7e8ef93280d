"""The peers: `mlx_lm.server` in one process, `--pipeline` on a ring started by hand, and by mlx.launch.

By hand is the strongest of them: mlx.launch takes a core for itself (mlx 0.32.4), and its ranks run with the
BLAS that MLX brings. The others get the same model folder, BLAS and threads as ours, no seeds (a seed ends
their batching), and warm weights before the clock starts. By hand runs twice: with `best_flags`, and with
`default_flags` as its users start it; the others have the best ones. Their ranks spin on their cores when
idle, so they must be stopped while anything else is timed.
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
from typing import Any, Literal

import psutil

from bench.contender import ROOT, BenchError, last_lines, uninterrupted
from bench.dialects import OpenAIChat
from bench.ground import Ground
from bench.load import Server
from bench.names import DEFAULT_PEER, PEER
from bench.ours import read_blas
from cluster.ports import free_ring_ports
from cluster.processes import PSUTIL_ERRORS
from config.limits import count_cores

HOST = "127.0.0.1"
LISTEN_LIMIT_S = 120.0
LOOK_INTERVAL_S = 0.1
END_GRACE_S = 3.0
How = Literal["by hand", "one process", "mlx.launch"]
NAMES: dict[How, str] = {
    "by hand": PEER,
    "one process": "mlx_lm.server, one process",
    "mlx.launch": "mlx.launch mlx_lm.server",
}
BUNDLED_BLAS = "the one that MLX brings"
UNTOUCHED = ("(its defaults)", "as its users start it; --prefill-step-size is 2048")
Flags = dict[str, tuple[str, str]]  # value and reason


def default_flags() -> Flags:
    """Nothing that changes how fast it is: as its users start it."""
    return {"--log-level": ("WARNING", "no line for each request")}


def best_flags(num_clients: int) -> Flags:
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


class MlxLmServer:
    """mlx_lm.server; on a ring rank 0 alone listens."""

    def __init__(
        self, ground: Ground, num_clients: int, how: How = "by hand", *, has_default_flags: bool = False
    ) -> None:
        """
        Args:
            num_clients: the most that will ask at once.
            has_default_flags: no flag that tunes it; only by hand has a name for this.
        """
        assert how == "by hand" or not has_default_flags
        self._ground, self._how, self._has_default_flags = ground, how, has_default_flags
        self.name = DEFAULT_PEER if has_default_flags else NAMES[how]
        self.flags = default_flags() if has_default_flags else best_flags(num_clients)
        self.blas = ""

    @property
    def num_ranks(self) -> int:
        return 1 if self._how == "one process" else self._ground.num_ranks

    @contextmanager
    def running(self) -> Iterator[Server]:
        """Start all ranks, wait until rank 0 listens, and end them whatever happens.

        It listens before its model is loaded: the first answer is the sign that it is ready.

        Raises:
            BenchError: a rank ended, or rank 0 does not listen.
        """
        folder = Path(tempfile.mkdtemp(prefix="peer-", dir=self._ground.folder))
        port, *ring_ports = free_ring_ports(HOST, 1 + self.num_ranks)
        ranks: list[subprocess.Popen[bytes]] = []
        try:
            if self._how == "mlx.launch":
                ranks.append(self._start_launcher(port, ring_ports[0], folder))
            else:
                hostfile = folder / "hosts.json"
                hostfile.write_text(json.dumps([[f"{HOST}:{ring_port}"] for ring_port in ring_ports]))
                for rank in range(self.num_ranks):
                    # One by one, so that a failure finds in the list what was started before it.
                    ranks.append(self._start_rank(rank, port, hostfile))  # noqa: PERF401 - see above
            _wait_for_listener(port, ranks, folder)
            self.blas = BUNDLED_BLAS if self._how == "mlx.launch" else read_blas(folder)
            yield Server(HOST, port, OpenAIChat())
        finally:
            with uninterrupted():
                _end(ranks)
            shutil.rmtree(folder, ignore_errors=True)

    def describe(self) -> Mapping[str, Any]:
        """For the report."""
        chosen = {**self.flags, **({"all others": UNTOUCHED} if self._has_default_flags else {})}
        shown = {key: {"value": value, "reason": reason} for key, (value, reason) in chosen.items()}
        return {"name": self.name, "num_ranks": self.num_ranks, "blas": self.blas, "flags": shown}

    def _server_flags(self, port: int) -> list[str]:
        chosen = [word for flag, (value, _) in self.flags.items() for word in (flag, value)]
        is_ring = [] if self._how == "one process" else ["--pipeline"]
        place = ["--model", str(self._ground.model_folder), "--host", HOST, "--port", str(port)]
        return [*place, *is_ring, *chosen]

    def _start_rank(self, rank: int, port: int, hostfile: Path) -> subprocess.Popen[bytes]:
        num_threads = count_cores() if self._how == "one process" else self._ground.num_blas_threads
        environment = dict(os.environ)
        if self._how != "one process":
            environment |= {"MLX_RANK": str(rank), "MLX_HOSTFILE": str(hostfile)}
        command = [sys.executable, "-m", "bench.peer_rank", self._ground.blas, str(num_threads)]
        return _start([*command, *self._server_flags(port)], hostfile.parent / f"rank{rank}.log", environment)

    def _start_launcher(self, port: int, ring_port: int, folder: Path) -> subprocess.Popen[bytes]:
        launcher = str(Path(sys.executable).with_name("mlx.launch"))
        server = str(Path(sys.executable).with_name("mlx_lm.server"))
        ring = ["--backend", "ring", "-n", str(self.num_ranks), "--starting-port", str(ring_port)]
        command = [launcher, *ring, "--python", sys.executable, "--", server, *self._server_flags(port)]
        return _start(command, folder / "rank0.log", dict(os.environ))


def _start(command: list[str], log: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    with log.open("wb") as file:
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,  # its end tells a rank of ours that we are gone
            stdout=file,
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
    """SIGTERM, then SIGKILL; all are gone and reaped when this returns, with what mlx.launch started."""
    below = [child for process in ranks for child in _children_of(process)]
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
    _, alive = psutil.wait_procs(below, timeout=END_GRACE_S if below else 0)
    for child in alive:
        child.kill()
    psutil.wait_procs(alive, timeout=END_GRACE_S)


def _children_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except PSUTIL_ERRORS:
        return []
