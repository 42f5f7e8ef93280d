"""The public seam of the ring: a rank loads its own part of the model, a prompt goes round the ring.

`shard_and_load` reads only the rank's own tensors, from only the files that hold them; its peak memory is
what the rank keeps plus a passing share of one tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from distributed.backends.backend import Backend, StageRunner
from distributed.backends.choose import choose_backend
from distributed.planning.capacities import HostCapacity
from distributed.planning.layer_plan import plan_layers
from distributed.planning.model_shape import read_shape
from distributed.planning.step import Resize, StageStep
from distributed.ring.frame import make_step_frame
from distributed.ring.ring import Ring


def shard_and_load(
    folder: Path,
    rank: int,
    ring_size: int,
    *,
    layers: Sequence[range] | None = None,
    backend: Backend | None = None,
    dequantize: bool = False,
    dtype: str | None = None,
    keeps_windows: bool = False,
    on_progress: Callable[[float], None] | None = None,
) -> StageRunner:
    """Load the layers of one rank of a ring; rank 0 has the last ones.

    Args:
        layers: every rank's layers, indexed by rank; None plans for equal ranks without memory limits.
        backend: what runs them; None: what this machine has, with MLX's own layers.
        dequantize: unpack quantized weights (faster on a CPU, where they fit).
        dtype: float32, float16 or bfloat16; None: what the backend computes in.
        keeps_windows: layers with a window keep no more than it.
        on_progress: called with the share that is loaded, 0 to 1.

    Raises:
        ModelError: the folder cannot be served, or has fewer layers than the ring has ranks.
    """
    assert 0 <= rank < ring_size
    if layers is None:
        layers = plan_layers(read_shape(folder), [HostCapacity(num_ranks=ring_size)])
    assert len(layers) == ring_size
    if backend is None:
        backend = choose_backend(folder, rank=rank)
    return backend.load(
        folder,
        layers[rank],
        is_first=rank == ring_size - 1,
        is_last=rank == 0,
        on_progress=on_progress,
        dequantize=dequantize,
        dtype=dtype,
        keeps_windows=keeps_windows,
    )


def broadcast_prompt(ring: Ring, token_ids: Sequence[int], *, max_chunk_tokens: int) -> int:
    """Send a prompt round the ring in chunks, as rank 0; return how many frames will come back.

    What travels where: the token ids go to rank N-1 only, which has the embeddings; it and every rank below
    pass hidden states on to the next lower one, and each keeps the KV of its own layers. The last chunk asks
    rank 0 for logits. No rank but the first stage ever sees an id, and none a text.

    The prompt takes slot 0 of table 0, whose KV is dropped first: this is for a ring that serves nothing yet.
    """
    chunks = [token_ids[at : at + max_chunk_tokens] for at in range(0, len(token_ids), max_chunk_tokens)]
    for number, chunk in enumerate(chunks, 1):
        step = StageStep(
            table=0,
            slots=(0,),
            offsets=((number - 1) * max_chunk_tokens,),
            counts=(len(chunk),),
            num_tokens=len(chunk),
            wants_logits=number == len(chunks),
            resizes=(Resize(0, 0, 0),) if number == 1 else (),
        )
        ids = np.array([chunk], np.int32)
        ring.send(make_step_frame(step, ids, epoch=ring.epoch, number=number))
    return len(chunks)
