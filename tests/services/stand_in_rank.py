"""One rank as server.py runs it, on a stand-in for a GPU; RingService starts it with `program`.

STAND_IN_LAYER_US, STAND_IN_SHAPE_MS   what the device takes for a layer, and Python for a new shape class
STAND_IN_RECORD                        a folder: rank-N.json there is the device's idle time of each step
"""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import server

if TYPE_CHECKING:
    from tests.fakes.stand_in_gpu import StandInDevice


def make_device() -> StandInDevice:
    """Put a stand-in in the place of what this machine has; MLX is imported here, where server.py would."""
    from distributed import joining
    from distributed.backends import choose
    from distributed.ring.frame import Kind
    from distributed.ring.ring import MlxRing
    from tests.fakes.stand_in_gpu import StandInDevice, StandInGpu

    layer_us, shape_ms = (os.environ.get(f"STAND_IN_{name}", "0") for name in ("LAYER_US", "SHAPE_MS"))
    device = StandInDevice(float(layer_us), float(shape_ms))

    class WatchedRing(MlxRing):
        """Tells the device when a step's frame has arrived, and when the next frame leaves."""

        def recv(self) -> Any:
            frame, hidden = super().recv()
            if frame.kind is Kind.STEP:
                device.enter()
            return frame, hidden

        def send(self, frame: Any, hidden: Any = None) -> None:
            device.leave()
            super().send(frame, hidden)

    vars(choose)["choose_backend"] = lambda *_: StandInGpu(device)
    vars(joining)["MlxRing"] = WatchedRing
    return device


def main() -> int:
    """Run the rank."""
    devices: list[StandInDevice] = []

    def begin(*_: object) -> str:
        devices.append(make_device())
        return ""

    vars(server)["load_fast_blas"] = begin
    code = server.main()
    if folder := os.environ.get("STAND_IN_RECORD"):
        rank = sys.argv[sys.argv.index("--rank") + 1]
        (Path(folder) / f"rank-{rank}.json").write_text(json.dumps(devices[0].idle_us))
    return code


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    os._exit(code)  # as server.py
