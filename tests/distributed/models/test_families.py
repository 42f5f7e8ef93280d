"""Every served type against mlx-lm's own model of it: the same tokens, however the layers are cut."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from config import REPOSITORY_ROOT
from distributed.backends.backend import Backend
from distributed.backends.cpu.backend import CpuBackend
from distributed.planning.families.served import FAMILIES, WRAPPERS
from distributed.planning.model_shape import ModelShape, read_shape
from distributed.self_test.seeded_models import make_model_folder
from tests.distributed.models.transformers_models import VARIANTS
from tests.fakes.checkpoints import reference_model
from tests.fakes.family_configs import CONFIGS, NEW
from tests.fakes.stand_in_gpu import StandInGpu
from tests.fakes.window_configs import WINDOW_BEYOND
from tests.services.stages import StageChain, load_chain, reference_logits, reference_tokens

PROMPT = [(7 * i + 3) % 250 for i in range(13)]
LONG_PROMPT = [(11 * i + 5) % 250 for i in range(60)]  # latents are expanded for so many
NUM_TOKENS = 10
TOLERANCE = 5e-4
MIN_LEAD = 1e-3  # below it float32 sums in another order may decide otherwise


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("families")


@dataclass(frozen=True)
class Packing:
    """How a folder's weights are packed; modules whose path matches `finer` take 8 bits, affine."""

    bits: int | None = None
    mode: str = "affine"
    finer: str = ""


PLAIN, BITS_8, BITS_6, BITS_4 = (Packing(bits) for bits in (None, 8, 6, 4))
MXFP4 = Packing(4, "mxfp4")
MIXED = Packing(4, finer=r"embed_tokens|lm_head|v_proj|down_proj|layers\.1\.")
MXFP4_MIXED = Packing(4, "mxfp4", r"embed_tokens|lm_head|self_attn")  # as gpt-oss is published


@cache
def folder_of(root: Path, name: str, packing: Packing = PLAIN, dtype: Any = mx.float32) -> Path:
    folder = root / f"{name}-{list(asdict(packing).values())}-{dtype}".replace("|", "").replace("\\", "")
    return make_model_folder(folder, CONFIGS[name], **asdict(packing), dtype=dtype)


@cache
def reference_of(folder: Path, dtype: Any = mx.float32) -> tuple[Any, list[int], list[float]]:
    """Return mlx-lm's own model, what it generates, and its leads over the second best."""
    model = reference_model(folder, dtype)
    return model, *reference_tokens(model, PROMPT, NUM_TOKENS)


def check_tokens(
    chain: StageChain, folder: Path, dtype: Any = mx.float32, chunk: int = 1 << 30, min_lead: float = MIN_LEAD
) -> None:
    """Check that the chain generates what mlx-lm does, up to the first call that is too close."""
    _, tokens, leads = reference_of(folder, dtype)
    logits = chain.prefill(PROMPT, chunk=chunk)[-1]
    for i, (token, lead) in enumerate(zip(tokens, leads, strict=True)):
        if lead < min_lead:
            assert i > 2, "the checkpoint is too close a call to compare tokens"
            return
        assert int(mx.argmax(logits).item()) == token, i
        logits = chain.run([[token]], [0], [len(PROMPT) + i])[0, 0]


def check_rows(chain: StageChain, model: Any) -> None:
    """Check that rows of unlike length decode together as each does alone."""
    rows, order = [PROMPT[:n] for n in (3, 7, 1)], [2, 0, 1]
    for slot, row in enumerate(rows):
        chain.prefill(row, slot=slot)
    logits = chain.run([[9]] * 3, order, [len(rows[slot]) for slot in order])
    for got, slot in zip(logits, order, strict=True):
        wanted = reference_logits(model, [*rows[slot], 9])[-1]
        assert mx.allclose(got[0], wanted, rtol=0, atol=TOLERANCE), slot


def check_half(chain: StageChain, folder: Path) -> None:
    """Check bfloat16: the tokens of mlx-lm; of latents, whose products are others, as small an error."""
    if FAMILIES[json.loads((folder / "config.json").read_text())["model_type"]].kv != "latent":
        check_tokens(chain, folder, mx.bfloat16, min_lead=0)
        return
    exact = reference_logits(reference_of(folder)[0], LONG_PROMPT)
    theirs = reference_logits(reference_of(folder, mx.bfloat16)[0], LONG_PROMPT)
    for chunk in (1, len(LONG_PROMPT)):
        ours = chain.prefill(LONG_PROMPT, chunk=chunk)
        # An expert that rounding chose otherwise changes a token's logits altogether: the median.
        assert median_error(ours, exact) < 1.3 * median_error(theirs, exact)


def median_error(logits: mx.array, exact: mx.array) -> float:
    """Of the tokens' root mean squares."""
    return float(np.median(np.sqrt(np.mean(np.array(logits.astype(mx.float32) - exact) ** 2, axis=-1))))


@pytest.mark.parametrize(
    ("name", "keeps_windows"), [*((name, False) for name in NEW), *((name, True) for name in WINDOW_BEYOND)]
)
def test_three_uneven_stages_give_the_numbers_of_mlx_lm(root: Path, name: str, keeps_windows: bool) -> None:
    """A prompt in chunks, then rows of unlike length."""
    folder = folder_of(root, name)
    model, chain = reference_of(folder)[0], load_chain(folder, (1, 2, 1), keeps_windows=keeps_windows)
    assert mx.allclose(
        chain.prefill(PROMPT, chunk=5), reference_logits(model, PROMPT), rtol=0, atol=TOLERANCE
    )
    check_tokens(chain, folder)
    check_rows(chain, model)
    shape = read_shape(folder, float_bytes=4, num_tokens=10**6 if keeps_windows else 0)
    assert any(shape.layer_state_bytes) == (keeps_windows or FAMILIES[name].kv == "state")
    check_sizes(chain, shape, model, CONFIGS[name])


def check_sizes(chain: StageChain, shape: ModelShape, model: Any, config: dict[str, Any]) -> None:
    """Check what plans and admission count with against what the stages hold."""
    for stage in chain.stages:
        held = stage.model
        planned = shape.stage_bytes(held.layers, is_first=held.is_first, is_last=held.is_last)
        assert planned == held.weights_bytes
        stage.drop_tables()
        stage.measure_kv()
        assert stage.kv_bytes_per_token == sum(shape.layer_kv_bytes[i] for i in held.layers)
        assert stage.state_bytes_per_row == sum(shape.layer_state_bytes[i] for i in held.layers)
    for layer, cost in zip(model.layers, shape.layer_costs, strict=True):
        arrays = dict(tree_flatten(layer.parameters()))
        every = sum(array.nbytes for array in arrays.values())
        # beside them, and their biases, heads and convolutions are stacked
        experts = [
            array
            for path, array in arrays.items()
            if ".experts." in path or (array.ndim == 3 and "conv" not in path and "self_attn" not in path)
        ]
        idle = sum(array.nbytes * (1 - config["num_experts_per_tok"] / len(array)) for array in experts)
        assert cost == pytest.approx(every - idle)


@pytest.mark.parametrize("name", NEW)
def test_two_stages_as_on_a_gpu_give_the_tokens_of_mlx_lm(root: Path, name: str) -> None:
    """In bfloat16 with products of 4 bits: bit for bit the same work."""
    folder = folder_of(root, name, BITS_4, mx.bfloat16)
    check_half(load_chain(folder, (1, 3), StandInGpu()), folder)


PACKINGS = (BITS_8, BITS_6, BITS_4, MXFP4, MIXED, MXFP4_MIXED)
WAYS: list[tuple[Backend, Any, tuple[Packing, ...]]] = [
    (CpuBackend(None), mx.float32, (PLAIN, *PACKINGS)),
    (CpuBackend("auto"), mx.float32, (PLAIN, MIXED)),
    (StandInGpu(), mx.bfloat16, PACKINGS),
]


@pytest.mark.long
@pytest.mark.parametrize("counts", [(4,), (2, 2), (3, 1), (1, 2, 1)])
@pytest.mark.parametrize("name", [name for name, record in FAMILIES.items() if record.runs_as == name])
def test_every_cut_gives_the_tokens_of_mlx_lm(root: Path, name: str, counts: tuple[int, ...]) -> None:
    """Float32 and bfloat16, plain and packed, a prompt whole, in chunks and token by token."""
    for backend, dtype, packings in WAYS:
        for packing, keeps_windows in product(packings, {False, name in WINDOW_BEYOND}):
            folder = folder_of(root, name, packing, dtype)
            chain = load_chain(folder, counts, backend, keeps_windows=keeps_windows)
            if dtype == mx.float32:
                for chunk in (1, 5, len(PROMPT)):
                    check_tokens(chain, folder, chunk=chunk)
                check_rows(chain, reference_of(folder)[0])
            else:
                check_half(chain, folder)


def test_every_served_type_has_a_tiny_config_and_a_row_on_the_page() -> None:
    """Nothing is on the list without a test; the page says what each type is compared with."""
    assert set(CONFIGS) == set(FAMILIES)
    assert {record.runs_as for record in FAMILIES.values()} <= set(FAMILIES)
    with_torch = {name for name, _ in VARIANTS.values()} | {name.partition("-")[0] for name in VARIANTS}
    page = (REPOSITORY_ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1:-1] for line in page.splitlines() if line.startswith("| `")]
    listed = {name: proof for names, _, proof in rows for name in re.findall(r"`(\w+)`", names)}
    assert listed.keys() == FAMILIES.keys() | WRAPPERS
    for name in FAMILIES.keys() | WRAPPERS:
        assert ("transformers" in listed[name]) == (name in with_torch), name
