"""What a step costs beside its arithmetic, as limits that fail when they grow: on a GPU each is time.

Launched operations are the primitives of a step's graph that start a kernel on Metal; views do not. MLX's
CPU build makes many primitives of norms, rotary embeddings and attention, so one takes their place.

With `pytest -s` each test prints its figures, which docs/benchmarks.md has.
"""

from __future__ import annotations

import io
import json
import re
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from distributed.backends.kv_cache import KVTable
from distributed.backends.stage import Stage
from tests.fakes.checkpoints import cast_weights, make_checkpoint
from tests.fakes.stand_in_gpu import StandInDevice, StandInGpu
from tests.services.ring_service import ROOT, RingService
from tests.services.stages import load_whole, make_step

VIEWS = {
    *("Reshape", "Transpose", "Slice", "Broadcast", "ExpandDims", "Squeeze", "Split", "Flatten", "Unflatten"),
    "StopGradient",
}
ONE_ROW = {0: (9, 1)}
UNEVEN_ROWS = {slot: (9 + 3 * slot, 1) for slot in range(4)}
LAYER_US = 350.0
MAX_IDLE_MS = 0.5
NUM_TOKENS = 60


def make_model(folder: Path, num_layers: int) -> Path:
    """A model like the default one, in bfloat16 with products of 8 bits."""
    made = make_checkpoint(folder, "deepseek_v2-8bit", num_files=1, num_hidden_layers=num_layers)
    return cast_weights(made, mx.bfloat16)


def make_stage(
    folder: Path, num_layers: int, rows: dict[int, tuple[int, int]], device: StandInDevice | None = None
) -> Stage:
    """A stage of all layers whose rows hold their tokens."""
    stage = Stage(load_whole(make_model(folder, num_layers), num_layers, StandInGpu(device)))
    for slot, (offset, _) in rows.items():
        stage.run(make_step({slot: (0, offset)}), mx.ones((1, offset), mx.int32))
    return stage


@pytest.fixture
def metal_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    """One primitive for each of Metal's fused operations; the numbers are wrong."""
    monkeypatch.setattr(mx.fast, "rms_norm", lambda x, *_, **__: mx.erfinv(x))
    monkeypatch.setattr(mx.fast, "rope", lambda x, *_, **__: mx.arctan(x))


def count_launched(folder: Path, num_layers: int, rows: dict[int, tuple[int, int]]) -> int:
    stage = make_stage(folder, num_layers, rows)
    stage.runner.submit = lambda *_: None  # type: ignore[method-assign]
    table = KVTable(num_layers)
    stage._tables[0], written = table, stage._tables[0]
    for layer, old in zip(table.layers, written.layers, strict=True):
        layer.keys, layer.values = old.keys, old.values
    table.shape = written.shape
    text = io.StringIO()
    mx.export_to_dot(text, stage.launch(make_step(rows), mx.ones((len(rows), 1), mx.int32)))
    names = re.findall(r'label ="([^"]*)", shape=rectangle', text.getvalue())
    return sum(name not in VIEWS for name in names)


@pytest.mark.usefixtures("metal_operations")
@pytest.mark.parametrize(("rows", "limit"), [(ONE_ROW, 36), (UNEVEN_ROWS, 40)])
def test_launched_operations_a_layer(tmp_path: Path, rows: dict[int, tuple[int, int]], limit: int) -> None:
    """Of a layer with experts; the index and the mask of a step are made once for all layers."""
    counts = [count_launched(tmp_path / str(num), num, rows) for num in (3, 4)]
    num_launched = counts[1] - counts[0]
    print(f"\n{len(rows)} rows: {num_launched} launched operations a layer, of {limit} allowed")
    assert 20 < num_launched <= limit


def count_calls(run: Callable[[], Any]) -> int:
    """Count the calls of Python and C functions."""
    num = 0

    def on_event(_: Any, event: str, __: Any) -> None:
        nonlocal num
        num += event in {"call", "c_call"}

    sys.setprofile(on_event)
    try:
        run()
    finally:
        sys.setprofile(None)
    return num


@pytest.mark.parametrize(("rows", "limit"), [(ONE_ROW, 115), (UNEVEN_ROWS, 117)])
def test_python_calls_a_layer(tmp_path: Path, rows: dict[int, tuple[int, int]], limit: int) -> None:
    """With some slack; functions that MLX binds do not show."""
    counts = []
    for num in (3, 13):
        stage = make_stage(tmp_path / str(num), num, rows)
        step, ids = make_step(rows), mx.ones((len(rows), 1), mx.int32)
        stage.run(step, ids)
        counts.append(count_calls(partial(stage.run, step, ids)))
    num_calls = (counts[1] - counts[0]) / 10
    print(f"\n{len(rows)} rows: {num_calls} Python calls a layer, of {limit} allowed")
    assert num_calls <= limit


def test_most_of_a_steps_python_is_hidden(tmp_path: Path) -> None:
    """The device waits for the first layers only; the rest is built while it works."""
    device = StandInDevice(layer_us=LAYER_US)
    stage = make_stage(tmp_path, 14, ONE_ROW, device)
    device.idle_us.clear()
    built_us = []
    for number in range(15):
        device.enter()
        begun = time.perf_counter()
        step = make_step({0: (9 + number, 1)})
        hidden = stage.launch(step, mx.ones((1, 1), mx.int32))
        built_us.append((time.perf_counter() - begun) * 1e6)
        stage.finish(step, hidden)
        device.leave()
    idle_us, built = statistics.median(device.idle_us), statistics.median(built_us)
    print(f"\none stage of 14 layers: {built / 1000:.2f} ms to build a step, {idle_us / 1000:.2f} not hidden")
    assert idle_us < 0.5 * built


@pytest.mark.slow
def test_a_greedy_lap_of_two_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step and a message on each rank; hardly any time in which a stage's device has nothing to do."""
    model = make_model(tmp_path / "model", 27)
    monkeypatch.setenv("STAND_IN_LAYER_US", str(LAYER_US))
    monkeypatch.setenv("STAND_IN_RECORD", str(tmp_path))
    ring = RingService(tmp_path / "state", model, 2, layer_split="14,13")
    ring.program = ROOT / "tests/services/stand_in_rank.py"
    with ring:
        ring.ask(ring.request([5, 6, 7], max_tokens=NUM_TOKENS, ignore_eos=True))
        assert ring.stop() == [0, 0]
    records = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2)]
    # without the prompt, and the last laps, of which some only say that the answer has ended
    evaluations, idle_us = (
        [statistics.median(record[name][5 - NUM_TOKENS : -3]) for record in records]
        for name in ("evaluations", "idle_us")
    )
    print(f"\n{sum(evaluations):.0f} evaluations a lap; a stage's device is idle, median by rank:", end="")
    print(*(f" {us / 1000:.2f} ms" for us in idle_us))
    assert sum(evaluations) <= 4
    assert max(idle_us) < MAX_IDLE_MS * 1000
