"""Every served type against mlx-lm's own model of it: the same tokens, however the layers are cut."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from distributed.planning.families import FAMILIES
from distributed.self_test.seeded_models import make_model_folder
from tests.fakes.checkpoints import reference_model
from tests.fakes.family_configs import CONFIGS, NEW
from tests.fakes.stand_in_gpu import StandInGpu
from tests.services.stages import StageChain, load_chain, reference_logits, reference_tokens

PROMPT = [(7 * i + 3) % 250 for i in range(13)]
NUM_TOKENS = 10
TOLERANCE = 5e-4
MIN_LEAD = 1e-3  # below it float32 sums in another order may decide otherwise


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("families")


@cache
def folder_of(root: Path, name: str, bits: int | None = None, dtype: Any = mx.float32) -> Path:
    return make_model_folder(root / f"{name}-{bits}-{dtype}", CONFIGS[name], bits=bits, dtype=dtype)


@cache
def reference_of(folder: Path, dtype: Any = mx.float32) -> Any:
    return reference_model(folder, dtype)


def best(logits: mx.array) -> int:
    return int(mx.argmax(logits).item())


def check_tokens(chain: StageChain, model: Any, prompt: list[int], chunk: int) -> None:
    """Prefill in chunks and decode as mlx-lm does, up to the first call that is too close."""
    tokens, leads = reference_tokens(model, prompt, NUM_TOKENS)
    logits = chain.prefill(prompt, chunk=chunk)[-1]
    for i, (token, lead) in enumerate(zip(tokens, leads, strict=True)):
        if lead < MIN_LEAD:
            assert i, "the checkpoint is too close a call to compare tokens"
            return
        assert best(logits) == token, i
        logits = chain.run([[token]], [0], [len(prompt) + i])[0, 0]


@pytest.mark.parametrize("name", NEW)
def test_three_uneven_stages_give_the_numbers_of_mlx_lm(root: Path, name: str) -> None:
    """A prompt in chunks; then rows of unlike length decode together as each does alone."""
    folder = folder_of(root, name)
    model, chain = reference_of(folder), load_chain(folder, (1, 2, 1))
    assert mx.allclose(chain.prefill(PROMPT, chunk=5), reference_logits(model, PROMPT), rtol=0, atol=TOLERANCE)
    check_tokens(chain, model, PROMPT, 5)
    rows = [PROMPT[:n] for n in (3, 7, 1)]
    for slot, row in enumerate(rows):
        chain.prefill(row, slot=slot)
    order = [2, 0, 1]
    logits = chain.run([[9]] * 3, order, [len(rows[slot]) for slot in order])
    for got, slot in zip(logits, order, strict=True):
        wanted = reference_logits(model, [*rows[slot], 9])[-1]
        assert mx.allclose(got[0], wanted, rtol=0, atol=TOLERANCE), slot


@pytest.mark.parametrize("name", NEW)
def test_two_stages_as_on_a_gpu_give_the_tokens_of_mlx_lm(root: Path, name: str) -> None:
    """In bfloat16 with products of 4 bits: bit for bit the same work."""
    folder = folder_of(root, name, 4, mx.bfloat16)
    model, chain = reference_of(folder, mx.bfloat16), load_chain(folder, (1, 3), StandInGpu())
    tokens, _ = reference_tokens(model, PROMPT, NUM_TOKENS)
    logits = chain.prefill(PROMPT)[-1]
    for i, token in enumerate(tokens):
        assert best(logits) == token, i
        logits = chain.run([[token]], [0], [len(PROMPT) + i])[0, 0]


def test_every_served_type_has_a_tiny_config() -> None:
    """Nothing is on the list without a test."""
    assert set(CONFIGS) == set(FAMILIES)
    assert {record.runs_as for record in FAMILIES.values()} <= set(FAMILIES)
