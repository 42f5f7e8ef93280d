"""What a rank makes of its machine's memory, with a GPU (a pretended one) and without."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import psutil
import pytest

from config import Settings, load_settings
from distributed import joining
from distributed.backends import memory
from distributed.backends.cpu.backend import CpuBackend
from distributed.backends.mlx import MlxBackend
from distributed.backends.stage import LONG_STEP_TOKENS, Stage
from distributed.planning.capacities import NUM_SCORE_ARRAYS, RANK_BYTES
from distributed.planning.layer_plan import DoesNotFit
from distributed.planning.model_shape import ModelShape
from distributed.planning.step import Resize, StageStep
from distributed.ring import watchdog as watchdog
from distributed.ring.ring import LoopbackRing
from distributed.ring.watchdog import RankStart, Watchdog
from tests.fakes.checkpoints import make_checkpoint
from tests.fakes.model_shapes import make_model_shape
from tests.services.stages import load_whole

GIB = 1 << 30


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Let MLX have a GPU that may use 10 GiB, with 4 GiB free; the calls by name."""
    calls: dict[str, Any] = {"num_clears": 0}
    monkeypatch.setattr(mx, "device_info", lambda: {"max_recommended_working_set_size": 10 * GIB})
    monkeypatch.setattr(mx, "set_cache_limit", lambda limit: calls.update(cache_limit=limit))
    monkeypatch.setattr(mx, "set_wired_limit", lambda limit: calls.update(wired_limit=limit))
    monkeypatch.setattr(mx, "clear_cache", lambda: calls.update(num_clears=calls["num_clears"] + 1))
    set_free(monkeypatch, 4 * GIB)
    return calls


def set_free(monkeypatch: pytest.MonkeyPatch, num_bytes: int) -> None:
    """Let so much memory be free."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=num_bytes))


def make_shape(weights_bytes: int) -> ModelShape:
    """A model of so many bytes, in 4 layers."""
    return make_model_shape((weights_bytes // 4,) * 4, kv_bytes_per_token=4096)


def check(tmp_path: Path, weights_bytes: int, num_ranks: int = 1, gpu_limit: int | None = 10 * GIB) -> None:
    """Check weights of so many bytes, in 4 layers, with 1 GiB for KV."""
    settings: Settings = load_settings(
        {"STATE_DIR": str(tmp_path), "KV_CACHE_RESERVED_MEMORY_MB": "1024", "MAX_SEQUENCE_LENGTH": "100000"},
        root=tmp_path,
        environ={},
    )
    step = 4 // num_ranks
    layers = [range(i, i + step) for i in range(0, 4, step)][::-1]
    memory.check_memory(settings, make_shape(weights_bytes), layers, gpu_limit)


def test_a_gpu_holds_what_it_may_use_whatever_is_free(
    tmp_path: Path, gpu: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Twice of what is free is only warned of, in one sentence with the numbers."""
    check(tmp_path, 8 * GIB)
    assert "weights and KV may take 9.0 GiB and 4.0 GiB are free now" in caplog.text


def test_more_weights_than_the_gpu_may_use_are_refused(tmp_path: Path, gpu: dict[str, Any]) -> None:
    """Less half a GiB for each rank; free memory does not help."""
    check(tmp_path, 10 * GIB - 2 * RANK_BYTES, num_ranks=2)
    with pytest.raises(DoesNotFit, match=r"take 9.6 GiB, this machine has 9.0 GiB that its GPU may use"):
        check(tmp_path, int(9.6 * GIB), num_ranks=2)


def test_attention_on_a_gpu_takes_its_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what the GPU may use; without one it is not counted."""
    set_free(monkeypatch, 10 * GIB)
    settings: Settings = load_settings({"STATE_DIR": str(tmp_path)}, root=tmp_path, environ={})
    shape = replace(make_shape(9 * GIB), score_bytes=2 * 64)
    attention = NUM_SCORE_ARRAYS * 512 * 4096 * 2 * 64
    with pytest.raises(DoesNotFit, match=r"take 9.0 GiB, this machine has 8.5 GiB that its GPU may use"):
        memory.check_memory(settings, shape, [range(4)], 10 * GIB)
    memory.check_memory(settings, shape, [range(4)], 9 * GIB + RANK_BYTES + attention)
    memory.check_memory(settings, shape, [range(4)], None)


def test_without_a_gpu_what_is_free_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Weights beyond it are refused, KV beyond it is warned of."""
    set_free(monkeypatch, 4 * GIB)
    with pytest.raises(DoesNotFit, match=r"take 5.0 GiB, this machine has 4.0 GiB free"):
        check(tmp_path, 5 * GIB, gpu_limit=None)
    with caplog.at_level(logging.WARNING):
        check(tmp_path, 4 * GIB, gpu_limit=None)
    assert "are more than the 4.0 GiB free" in caplog.text


@pytest.mark.parametrize("error", [RuntimeError("host_statistics64"), SystemError(), psutil.Error()])
def test_a_start_goes_on_where_psutil_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """No number, no refusal; a heartbeat says 0, a start time is now."""

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(psutil, "virtual_memory", fail)
    monkeypatch.setattr(psutil, "Process", fail)
    check(tmp_path, 1 << 50, gpu_limit=None)
    assert not CpuBackend().should_dequantize(make_shape(4))
    assert watchdog.read_rss() == 0
    assert watchdog.read_start_time() > 0


def test_the_cache_of_a_gpu_is_a_part_of_what_weights_leave(gpu: dict[str, Any]) -> None:
    """At most a GiB, and never less than nothing; ranks on one machine share it."""
    limits = []
    for weights, num_ranks in ((0, 1), (6 * GIB, 1), (1 * GIB, 2), (11 * GIB, 1)):
        MlxBackend().limit_memory(weights, num_ranks)
        limits.append(gpu["cache_limit"])
    assert limits == [GIB, GIB // 2, GIB // 2, 0]


def test_without_a_gpu_the_cache_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLX keeps no buffers on a CPU."""
    runner = load_whole(make_checkpoint(tmp_path, "llama"), 4)
    monkeypatch.setattr(mx, "set_cache_limit", None)
    monkeypatch.setattr(mx, "clear_cache", None)
    CpuBackend().limit_memory()
    runner.drop_cache()


def test_long_chunks_and_dropped_tables_give_their_buffers_back(tmp_path: Path, gpu: dict[str, Any]) -> None:
    """A decode step gives none back: it takes the same ones again. A table of another size does."""
    stage = Stage(load_whole(make_checkpoint(tmp_path, "llama"), 4, MlxBackend()))

    def run(num_tokens: int, *resizes: Resize) -> int:
        before: int = gpu["num_clears"]
        step = StageStep(0, (0,), (0,), (num_tokens,), num_tokens=num_tokens, resizes=resizes)
        stage.run(step, mx.ones((1, num_tokens), mx.int32))
        return int(gpu["num_clears"]) - before

    table = Resize(0, 1, 2 * LONG_STEP_TOKENS)
    assert run(1, table) == 1
    assert run(1) == 0
    assert run(LONG_STEP_TOKENS) == 1
    before = gpu["num_clears"]
    stage.drop_tables()
    assert gpu["num_clears"] == before + 1


def test_a_rank_tells_what_mlx_holds_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrays and kept buffers together, in place of RSS, which lacks what only the GPU touched."""
    monkeypatch.setattr(mx, "get_active_memory", lambda: 5 * GIB)
    monkeypatch.setattr(mx, "get_cache_memory", lambda: GIB)
    told = Watchdog(0, has_supervisor=False)
    assert 0 < told.memory_bytes < 5 * GIB
    told.count_memory_by(MlxBackend().held_bytes)
    assert told.memory_bytes == 6 * GIB


def test_a_rank_that_loads_on_a_gpu_limits_the_cache_and_counts_by_mlx(
    tmp_path: Path, gpu: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the layers are measured, so that the first heartbeat after that is right."""
    monkeypatch.setattr(mx, "get_active_memory", lambda: 5 * GIB)
    plan: Any = SimpleNamespace(
        model_folder=str(make_checkpoint(tmp_path, "llama")),
        ranges=(range(4),),
        dequantize=False,
        keeps_windows=False,
    )
    told = Watchdog(0, has_supervisor=False)
    settings: Any = SimpleNamespace(local_ranks=1)
    launch = joining.Launch(RankStart(1, 0, ("127.0.0.1:0",), ""), settings, told)
    stage, _ = joining.load_own_stage(launch, LoopbackRing(1), plan, MlxBackend())
    assert told.memory_bytes >= 5 * GIB
    assert gpu["cache_limit"] == GIB
    assert gpu["wired_limit"] == 10 * GIB
    assert stage.kv_bytes_per_token > 0
