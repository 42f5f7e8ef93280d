"""One rank as server.py runs it, on a stand-in for a GPU; RingService starts it with `program`.

STAND_IN_LAYER_US, STAND_IN_SHAPE_MS   what the device takes for a layer, and Python for a new shape class
STAND_IN_RECORD                        a folder: rank-N.json there has the lists of `Record`, by step
"""

from __future__ import annotations

import json
import logging
import os
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import server

if TYPE_CHECKING:
    from tests.fakes.stand_in_gpu import StandInDevice


@dataclass
class Record:
    """One number a step in each list but the last, from its frame's arrival on.

    An evaluation is what ends with one wait, and each that nobody waits for. Parts of it that were started
    before do not count, nor does a wait for what has been counted when it was started.
    """

    idle_us: list[int] = field(default_factory=list)
    evaluations: list[int] = field(default_factory=list)
    stalls_ns: list[int] = field(default_factory=list)  # when a new shape held Python up

    def count_evaluations(self) -> None:
        """Count from now on."""
        import mlx.core as mx

        evaluate, start = mx.eval, mx.async_eval
        counted: list[Any] = []

        def count_wait(*arrays: Any) -> None:
            if not any(array is each for array in arrays for each in counted):
                self._count()
            counted.clear()
            evaluate(*arrays)

        def count_start(*arrays: Any) -> None:
            if sys._getframe(1).f_code.co_name != "submit":
                self._count()
                counted.extend(arrays)
            start(*arrays)

        mx.eval, mx.async_eval = count_wait, count_start

    def _count(self) -> None:
        if self.evaluations:
            self.evaluations[-1] += 1


def take_over(record: Record) -> None:
    """Put a stand-in in the place of what this machine has; MLX is imported here, where server.py would."""
    from distributed import joining
    from distributed.backends import choose
    from distributed.ring.frame import Kind
    from distributed.ring.ring import MlxRing
    from tests.fakes.stand_in_gpu import StandInDevice, StandInGpu

    layer_us, shape_ms = (os.environ.get(f"STAND_IN_{name}", "0") for name in ("LAYER_US", "SHAPE_MS"))
    device: StandInDevice = StandInDevice(float(layer_us), float(shape_ms), record.idle_us, record.stalls_ns)

    class WatchedRing(MlxRing):
        """Tells the device when a step's frame has arrived, and when the next frame leaves."""

        def recv(self) -> Any:
            frame, hidden = super().recv()
            if frame.kind is Kind.STEP:
                device.enter()
                record.evaluations.append(0)
            return frame, hidden

        def send(self, frame: Any, hidden: Any = None) -> None:
            device.leave()
            super().send(frame, hidden)

    vars(choose)["choose_backend"] = lambda *_: StandInGpu(device)
    vars(joining)["MlxRing"] = WatchedRing
    record.count_evaluations()


def main() -> int:
    """Run the rank."""
    record = Record()

    def begin(*_: object) -> str:
        take_over(record)
        return ""

    vars(server)["load_fast_blas"] = begin
    code = server.main()
    if folder := os.environ.get("STAND_IN_RECORD"):
        rank = sys.argv[sys.argv.index("--rank") + 1]
        (Path(folder) / f"rank-{rank}.json").write_text(json.dumps(asdict(record)))
    return code


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    os._exit(code)  # as server.py
