"""Stages as a GPU runs them, in half precision with packed weights: the tokens of mlx-lm's own models."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from distributed.ring.watchdog import EXIT_RING_LOST
from distributed.self_test.seeded_models import make_model_folder
from spool import Request
from tests.fakes.checkpoints import cast_weights, make_checkpoint, reference_model
from tests.fakes.family_configs import CONFIGS
from tests.fakes.stand_in_gpu import StandInDevice, StandInGpu, StandInRunner
from tests.fakes.state_configs import STATEFUL_CONFIGS
from tests.services.local_ring import LocalRing, answer, load_stages
from tests.services.ring_service import ROOT, RingService
from tests.services.stages import load_chain, make_step, reference_logits, reference_tokens

PROMPT = [(7 * i + 3) % 250 for i in range(23)]
OTHERS = [[5, 6, 7], list(range(20, 60)), [(11 * i + 1) % 250 for i in range(9)]]
NUM_TOKENS = 24


@cache
def folder_of(variant: str, folder: Path, dtype: mx.Dtype = mx.bfloat16) -> Path:
    """A folder as Mac users have them: half precision, products of 8 bits."""
    return cast_weights(make_checkpoint(folder / f"{variant}-{dtype}", variant, num_files=1), dtype)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.mark.parametrize("counts", [(4,), (1, 3)])
@pytest.mark.parametrize(
    ("variant", "dtype"),
    [
        ("llama-8bit", mx.bfloat16),
        ("qwen3-8bit", mx.bfloat16),
        ("qwen3_moe-8bit", mx.bfloat16),
        ("qwen3_moe-8bit", mx.float16),
    ],
)
def test_stages_give_the_tokens_of_mlx_lm(
    folder: Path, variant: str, dtype: mx.Dtype, counts: tuple[int, ...]
) -> None:
    """Bit for bit the same work: weights stay as they are stored, and the greedy draw happens on the GPU."""
    model = folder_of(variant, folder, dtype)
    stages = load_stages(model, counts, StandInGpu())
    for stage in stages:
        assert isinstance(stage.runner, StandInRunner)
        assert stage.runner.is_async
        assert stage.runner.greedy is not None
        assert stage.model.dtype == dtype
    ring = LocalRing(stages, chunk=64)
    row = ring.ask(PROMPT, NUM_TOKENS)
    ring.run()
    assert answer(row) == reference_tokens(reference_model(model, dtype), PROMPT, NUM_TOKENS)[0]


@pytest.mark.parametrize("counts", [(4,), (1, 3)])
def test_latent_attention_rounds_no_worse_than_mlx_lm(folder: Path, counts: tuple[int, ...]) -> None:
    """Its products are others: as near to float32 as mlx-lm's, the same tokens where rounding allows."""
    model = folder_of("deepseek_v2-8bit", folder)
    theirs = reference_model(model, mx.bfloat16)
    tokens, leads = reference_tokens(theirs, PROMPT, NUM_TOKENS)
    ids = PROMPT + tokens[:-1]
    exact, half = (reference_logits(each, ids) for each in (reference_model(model), theirs))
    logits = load_chain(model, counts, StandInGpu()).prefill(ids)
    assert error_of(logits, exact) < 1.25 * error_of(half, exact)
    drawn = logits.argmax(axis=-1)[len(PROMPT) - 1 :].tolist()
    sure = [i for i, lead in enumerate(leads) if lead > 2.0]
    assert len(sure) >= 4, "the checkpoint is too close a call to compare tokens"
    assert [drawn[i] for i in sure] == [tokens[i] for i in sure]


def error_of(logits: mx.array, exact: mx.array) -> float:
    return float(mx.sqrt(mx.mean((logits.astype(mx.float32) - exact) ** 2)))


def never(num_rows: int, num_tokens: int) -> None:
    raise AssertionError("the first stage is not sent hidden states")


@pytest.mark.parametrize("comes", [True, False])
@pytest.mark.parametrize("variant", ["qwen3_moe-8bit", "qwen3_next", "falcon_h1"])
def test_a_step_that_was_built_ahead(folder: Path, variant: str, comes: bool) -> None:
    """It gives what it gives otherwise; one that does not come leaves no trace, in states neither."""
    outputs = []
    if variant in STATEFUL_CONFIGS:
        model = make_model_folder(folder / variant, STATEFUL_CONFIGS[variant], bits=8, dtype=mx.bfloat16)
    else:
        model = folder_of(variant, folder)
    for is_ahead in (False, True):
        stage = load_stages(model, (4,), StandInGpu())[0]
        stage.run(make_step({0: (0, 4), 1: (0, 4)}), mx.array([[1, 2, 3, 4], [5, 6, 7, 8]]))
        if is_ahead:
            expected = replace(make_step({0: (4, 1), 1: (4, 1)}), is_alone=True)
            stage.build_ahead(expected, never)
            stage.build_ahead(expected, never)  # a second call changes nothing
        rows = {0: (4, 1), 1: (4, 1)} if comes else {1: (4, 1)}
        hidden = stage.run(make_step(rows), mx.array([[9], [11]][: len(rows)]))
        after = stage.run(make_step({0: (4 + comes, 1), 1: (5, 1)}), mx.array([[3], [4]]))
        outputs.append((hidden.astype(mx.float32).tolist(), after.astype(mx.float32).tolist()))
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize("name", ["gemma2", "gemma3_text", "gemma4_text", "gpt_oss", "qwen3"])
def test_a_later_stage_builds_ahead_on_what_has_not_arrived(tmp_path: Path, name: str) -> None:
    """Beyond the window; the array that hidden states arrive in stays what it is, whatever the class does."""
    model = make_model_folder(tmp_path / name, CONFIGS[name])
    prompt = np.random.default_rng(0).normal(size=(1, 9, 64)).astype(np.float32)
    arrived = mx.zeros((1, 1, 64))
    mx.eval(arrived)
    place, outputs = np.asarray(arrived), []
    for is_ahead in (False, True):
        stage = load_stages(model, (2, 2), StandInGpu())[1]
        stage.run(make_step({0: (0, 9)}), mx.array(prompt))
        for number in range(2):
            step = replace(make_step({0: (9 + number, 1)}), is_alone=True)
            place[:] = 0
            if is_ahead:
                stage.build_ahead(step, lambda *_: arrived)
            place[:] = prompt[:, number]
            outputs.append(np.array(stage.run(step, arrived)))
            assert np.asarray(arrived).ctypes.data == place.ctypes.data
    assert np.array_equal(outputs[:2], outputs[2:])


def test_a_step_that_was_built_ahead_writes_in_place(folder: Path) -> None:
    """The old keys and values, which would bring it back, are gone when it starts."""
    stage = load_stages(folder_of("llama-8bit", folder), (4,), StandInGpu())[0]
    stage.run(make_step({0: (0, 2000)}), mx.ones((1, 2000), mx.int32))
    peaks = []
    for number in range(3):
        step = replace(make_step({0: (2000 + number, 1)}), is_alone=True)
        if number == 2:
            stage.build_ahead(step, never)
        mx.clear_cache()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        stage.run(step, mx.array([[1]], mx.int32))
        peaks.append(mx.get_peak_memory() - before)
    assert peaks[2] <= 1.1 * peaks[1] < stage.kv_num_bytes / 4


def test_the_device_counts_what_it_waits_for() -> None:
    """Layers take their time one after the other; a new shape class holds Python up once."""
    device = StandInDevice(layer_us=2000.0, shape_ms=30.0)
    for _ in range(2):
        device.enter()
        device.begin(make_step({0: (0, 4)}))
        for _ in range(3):
            device.build()
        device.submit()
        device.build()
        device.submit()
        device.wait()
        device.leave()
    first, second = device.idle_us
    assert first >= 30_000 > second


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Iterator[RingService]:
    model = folder_of("qwen3_moe-8bit", folder)
    ring = RingService(tmp_path_factory.mktemp("ring"), model, 2, layer_split="1,3")
    ring.program = ROOT / "tests/services/stand_in_rank.py"
    with ring:
        yield ring


def request(ring: RingService, prompt: list[int], **params: Any) -> Request:
    return ring.request(prompt, **{"max_tokens": NUM_TOKENS, "ignore_eos": True, **params})


def ask(ring: RingService, prompt: list[int], **params: Any) -> list[int]:
    (result,) = ring.ask(request(ring, prompt, **params))
    return list(result.token_ids)


@pytest.mark.slow
def test_a_service_of_two_ranks(ring: RingService) -> None:
    """Greedy answers are mlx-lm's, a seed gives its text again, and rows step together."""
    theirs = reference_model(ring.model, mx.bfloat16)
    expected = [reference_tokens(theirs, prompt, NUM_TOKENS)[0] for prompt in (PROMPT, *OTHERS)]
    status = json.loads((ring.state / "run/ring.json").read_text())
    assert [rank["device"] for rank in status["ranks"]] == ["gpu", "gpu"]
    alone = [ask(ring, prompt) for prompt in (PROMPT, *OTHERS)]
    assert alone == expected
    results = ring.ask(*(request(ring, prompt) for prompt in (PROMPT, *OTHERS)))
    assert [list(result.token_ids) for result in results] == expected
    drawn = [ask(ring, PROMPT, temperature=1.0, seed=seed) for seed in (1, 2, 1)]
    assert drawn[0] == drawn[2] != drawn[1]


@pytest.mark.slow
def test_an_answer_goes_on_after_a_kill(ring: RingService) -> None:
    """The log's tokens stay, and the rest is what it would have been."""
    expected = ask(ring, PROMPT, max_tokens=400)
    kept = request(ring, PROMPT, max_tokens=400)
    ring.spool().submit(kept)
    ring.read_until(kept.id, 10)
    os.kill(ring.ranks[1].pid, signal.SIGKILL)
    assert ring.ranks[0].wait(20) == EXIT_RING_LOST
    ring.kill()
    ring.start()
    assert list(ring.wait_for(kept.id).token_ids) == expected
    assert ring.stop() == [0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gemma3_text", "gpt_oss"])
def test_layers_with_windows_on_two_ranks(tmp_path: Path, name: str) -> None:
    """Alone, and with rows of unlike length at once: what mlx-lm answers."""
    model = make_model_folder(tmp_path / name, CONFIGS[name], bits=8, dtype=mx.bfloat16)
    prompts = (PROMPT, *OTHERS, [*PROMPT, 1, 2, 3], [*PROMPT[:20], 9, 9])
    theirs = reference_model(model, mx.bfloat16)
    expected = [reference_tokens(theirs, prompt, NUM_TOKENS)[0] for prompt in prompts]
    ring = RingService(tmp_path / "ring", model, 2, layer_split="1,3")
    ring.program = ROOT / "tests/services/stand_in_rank.py"
    with ring:
        assert [ask(ring, prompt) for prompt in prompts] == expected
        results = ring.ask(*(request(ring, prompt) for prompt in prompts))
        assert [list(result.token_ids) for result in results] == expected
