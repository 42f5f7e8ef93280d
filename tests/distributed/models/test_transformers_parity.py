"""Model folders that transformers has saved give the logits that torch computes for them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from cluster.commands.packages import LONG_PACKAGES
from config import REPOSITORY_ROOT
from distributed.backends.cpu.backend import CpuBackend
from tests.distributed.models.transformers_models import IDS, VARIANTS
from tests.services.stages import load_chain

NUM_PROMPT_TOKENS = 200
CHUNK_TOKENS = 96
TOLERANCE = 5e-4
# Of the delta rule, whose recurrence carries the rounding of float32 on.
LOOSE, LOOSE_TOLERANCE = ("qwen3_5", "qwen3_next"), 4e-3

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every variant's folder, made by transformers and torch in a process of their own."""
    if not (LONG_PACKAGES / "torch").is_dir():
        pytest.skip("torch is not installed: ./launch.sh check --all installs requirements-long.txt")
    root = tmp_path_factory.mktemp("transformers")
    done = subprocess.run(
        [sys.executable, "-m", "tests.distributed.models.transformers_models", str(root)],
        env={**os.environ, "PYTHONPATH": str(LONG_PACKAGES)},
        cwd=REPOSITORY_ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return root


@pytest.mark.parametrize("products", [None, "auto"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_saved_models_give_the_logits_of_transformers(
    folders: Path, variant: str, products: str | None
) -> None:
    """A prompt in chunks, then tokens one by one, on one, two and three stages, with MLX and on the CPU."""
    expected = np.load(folders / variant / "logits.npy")
    for counts in ((4,), (2, 2), (1, 2, 1)):
        chain = load_chain(folders / variant, counts, CpuBackend(products))
        parts = [chain.prefill(IDS[:NUM_PROMPT_TOKENS], chunk=CHUNK_TOKENS)]
        parts += [chain.run([[IDS[i]]], [0], [i])[0] for i in range(NUM_PROMPT_TOKENS, len(IDS))]
        tolerance = LOOSE_TOLERANCE if variant.startswith(LOOSE) else TOLERANCE
        assert np.abs(np.array(mx.concatenate(parts)) - expected).max() < tolerance, counts
