"""Frames that come in while the last one is worked on, between two real processes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from cluster.ports import free_ring_ports
from config import REPOSITORY_ROOT as ROOT

pytestmark = pytest.mark.slow
LIMIT_S = 60.0
# Both ranks make the same two steps; rank 1 sends them, rank 0 receives the second one ahead.
PROGRAM = """
import json, sys
import mlx.core as mx
import numpy as np
from distributed.planning.step import StageStep
from distributed.ring.frame import make_step_frame, with_hidden
from distributed.ring.ring import HiddenShape, MlxRing, RingLost

rank, hosts, foretold = int(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3])
ring = MlxRing(rank, hosts, 1, 20.0)
ring.set_hidden_shape(HiddenShape(4, mx.float32))

def wait():
    while not ring.is_readable():
        ring.wait(20.0)

if rank == 1:
    for number, rows in enumerate((2, 3)):
        step = StageStep(0, tuple(range(rows)), (0,) * rows, (1,) * rows, 1)
        frame = make_step_frame(step, np.zeros((rows, 1), np.int32), epoch=1, number=number)
        ring.send(with_hidden(frame), mx.full((rows, 1, 4), number + 0.5))
    ring.flush()
    sys.stdin.read()
else:
    said = []
    wait()
    ring.recv()
    wait()
    ring.begin_recv(foretold and tuple(foretold))
    ring.begin_recv(foretold and tuple(foretold))  # a second call changes nothing
    try:
        frame, hidden = ring.recv()
        said = [frame.step, hidden.shape, hidden.tolist()[2][0][3]]
    except RingLost as error:
        said = str(error)
    print(json.dumps(said))
"""


def receive_ahead(foretold: tuple[int, int] | None) -> object:
    """Let rank 0 receive a frame with three rows of one token; what it said."""
    ports = free_ring_ports("127.0.0.1", 2)
    hosts = json.dumps([f"127.0.0.1:{port}" for port in ports])
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(rank), hosts, json.dumps(foretold)],
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


@pytest.mark.parametrize(
    ("foretold", "said"),
    [
        ((3, 1), [1, [3, 1, 4], 1.5]),
        (None, [1, [3, 1, 4], 1.5]),
        ((2, 1), "rank 1 sent another frame than the expected one"),
    ],
)
def test_a_frame_received_ahead_is_the_frame(foretold: tuple[int, int] | None, said: object) -> None:
    """With its size known, or only its block; another size than the expected one ends the ring."""
    assert receive_ahead(foretold) == said
