"""A rank without a model: speaks the supervisor's protocol over its pipes, and to the other ranks over TCP.

Every other rank connects to rank 0; a lost connection ends both sides (exit 3), STOP over it ends the ring
(exit 0). FAKE_RANK, or the file `trouble` in FAKE_ROOT, says what goes wrong: `refuse:R` exits 2, `crash:R`
dies while loading, `hang:R` never says a word. What it is told of settings it writes to its log. Imports
nothing of ours, which would take longer than the rest of its life.
"""

import argparse
import contextlib
import json
import os
import selectors
import signal
import socket
import sys
import time
from pathlib import Path

HEARTBEAT_S = 0.1
CONNECT_LIMIT_S = 20.0


class FakeRank:
    """One process of the pretended ring."""

    def __init__(self, rank: int, order: dict[str, object]) -> None:
        self.rank = rank
        self.epoch = order["epoch"]
        self.hosts = [str(host) for host in order["hosts"]]  # type: ignore[attr-defined]
        self.phase = "connecting"
        self.step = 0
        self.neighbours: list[socket.socket] = []
        self.trouble, _, who = read_trouble().partition(":")
        self.is_troubled = who == str(rank)
        self.is_stopping = False

    def connect(self) -> None:
        """Rank 0 listens, all others dial it."""
        if self.rank > 0:
            self.neighbours = [self._dial(self.hosts[0], time.monotonic() + CONNECT_LIMIT_S)]
            return
        address, port = self.hosts[0].split(":")
        with socket.create_server((address, int(port))) as server:
            self.neighbours = [server.accept()[0] for _ in self.hosts[1:]]

    def _dial(self, host: str, deadline: float) -> socket.socket:
        address, port = host.split(":")
        waiting = selectors.DefaultSelector()
        while True:
            try:
                return socket.create_connection((address, int(port)), timeout=1.0)
            except ConnectionRefusedError:
                if time.monotonic() > deadline:
                    raise
                waiting.select(0.02)

    def enter(self, phase: str) -> None:
        """Say the phase at once."""
        self.phase = phase
        self.beat()

    def beat(self) -> None:
        """One heartbeat, and rank 0's status file."""
        self.step += self.phase == "ready"
        line = {
            "event": "heartbeat",
            "rank": self.rank,
            "phase": self.phase,
            "step": self.step,
            "progress": 0.5,
        }
        print(json.dumps({**line, "memory_bytes": 1_000_000}), flush=True)
        if self.rank == 0:
            self._write_status()

    def _write_status(self) -> None:
        size = len(self.hosts)
        ranks = [
            {"rank": r, "first_layer": 2 * (size - 1 - r), "num_layers": 2, "busy_ratio": 0.5}
            for r in range(size)
        ]
        status = {"updated_unix": time.time(), "epoch": self.epoch, "phase": self.phase, "ring_size": size}
        status["context"] = {"max_tokens": 4096, "bound": "setting", "model_tokens": 2048}
        path = Path(os.environ["STATE_DIR"]) / "run" / "ring.json"
        path.with_name("ring.new").write_text(
            json.dumps({**status, "reason": None, "model": "fake", "ranks": ranks}), encoding="utf-8"
        )
        path.with_name("ring.new").replace(path)

    def serve(self) -> int:
        """Beat until a pipe, a neighbour or a signal ends it."""
        selector = selectors.DefaultSelector()
        selector.register(sys.stdin.fileno(), selectors.EVENT_READ)
        for neighbour in self.neighbours:
            selector.register(neighbour, selectors.EVENT_READ)
        while not self.is_stopping:
            for key, _ in selector.select(HEARTBEAT_S):
                if key.fd == sys.stdin.fileno():
                    data = os.read(key.fd, 4096)
                    if not data:
                        return 5
                    print(f"rank {self.rank}: told {data.decode()}", end="", file=sys.stderr, flush=True)
                    continue
                with contextlib.suppress(ConnectionResetError):
                    if self.neighbours[0].recv(16) == b"STOP":
                        return 0
                print(f"rank {self.rank}: ring lost", file=sys.stderr)
                return 3
            self.beat()
        self.enter("draining")
        for neighbour in self.neighbours:
            neighbour.sendall(b"STOP")
        self.enter("stopped")
        return 0

    def run(self) -> int:
        """The whole life; the exit code."""
        if self.trouble == "hang" and self.is_troubled:
            sys.stdin.read()
            return 5
        self.enter("connecting")
        if self.trouble == "refuse" and self.is_troubled:
            print(f"rank {self.rank}: LAYER_SPLIT does not fit this model", file=sys.stderr)
            return 2
        self.connect()
        self.enter("loading")
        if self.trouble == "crash" and self.is_troubled:
            print(f"rank {self.rank}: the weights are broken", file=sys.stderr)
            return 1
        self.enter("ready")
        return self.serve()

    def stop(self, *_: object) -> None:
        """SIGTERM: rank 0 stops the ring, the others leave that to it."""
        self.is_stopping = self.rank == 0


def read_trouble() -> str:
    """What goes wrong in this life."""
    file = Path(os.environ.get("FAKE_ROOT", "/nowhere")) / "trouble"
    return file.read_text(encoding="ascii") if file.exists() else os.environ.get("FAKE_RANK", "")


def main() -> int:
    """Read the order, live, exit."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rank", type=int, required=True)
    # Unbuffered, or a selector would wait for bytes that are in Python's buffer already.
    with open(0, "rb", buffering=0, closefd=False) as stdin:
        line = stdin.readline()
    if not line:
        return 5
    order = json.loads(line)
    rank = FakeRank(parser.parse_args().rank, order)
    signal.signal(signal.SIGTERM, rank.stop)
    return rank.run()


if __name__ == "__main__":
    sys.exit(main())
