"""Hidden states whose array is known before they arrive, between two real processes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from cluster.ports import free_ring_ports
from config import REPOSITORY_ROOT as ROOT

pytestmark = pytest.mark.slow
LIMIT_S = 60.0
# Rank 1 sends two steps; rank 0 expects three rows in the second one.
PROGRAM = """
import json, sys
import mlx.core as mx
import numpy as np
from distributed.planning.step import StageStep
from distributed.ring.frame import make_step_frame, with_hidden
from distributed.ring.ring import HiddenShape, MlxRing

rank, hosts, num_rows = int(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3])
dtype = getattr(mx, sys.argv[4])
ring = MlxRing(rank, hosts, 1, 20.0)
ring.set_hidden_shape(HiddenShape(4, dtype))

def wait():
    while not ring.is_readable():
        ring.wait(20.0)

if rank == 1:
    for number, rows in enumerate((2, num_rows)):
        step = StageStep(0, tuple(range(rows)), (0,) * rows, (1,) * rows, 1)
        frame = make_step_frame(step, np.zeros((rows, 1), np.int32), epoch=1, number=number)
        ring.send(with_hidden(frame), mx.full((rows, 1, 4), number + 0.5, dtype))
    ring.flush()
    sys.stdin.read()
else:
    wait()
    ring.recv()
    expected = ring.expect_hidden(3, 1)
    later = expected + 1  # built on what is not there yet
    wait()
    frame, hidden = ring.recv()
    print(json.dumps([frame.step, hidden.shape, hidden.tolist()[2][0][3], hidden is expected]))
    if hidden is expected:
        assert later.tolist()[2][0][3] == hidden.tolist()[2][0][3] + 1
"""


def receive_ahead(num_rows: int, dtype: str) -> object:
    """Let rank 0, which expects three rows, receive a frame with so many; what it said."""
    ports = free_ring_ports("127.0.0.1", 2)
    hosts = json.dumps([f"127.0.0.1:{port}" for port in ports])
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(rank), hosts, str(num_rows), dtype],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        out, _ = ranks[0].communicate(timeout=LIMIT_S)
        return json.loads(out)
    finally:
        for process in ranks:
            process.kill()
            process.communicate()


@pytest.mark.parametrize("num_rows", [3, 100])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_expected_hidden_states_arrive_in_their_array(num_rows: int, dtype: str) -> None:
    """Others come in an array of their own; many rows take a second message."""
    assert receive_ahead(num_rows, dtype) == [1, [num_rows, 1, 4], 1.5, num_rows == 3]
