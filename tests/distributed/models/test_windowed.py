"""gpt-oss with experts in mxfp4, as MLX and OpenAI store them; Step 3.5 in its own layout."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten

from distributed.backends.cpu.backend import CpuBackend
from distributed.models import check_model
from distributed.planning.checkpoint import UnsupportedModel, read_config, read_tensors
from distributed.planning.model_shape import read_shape
from distributed.self_test.seeded_models import make_model_folder
from tests.fakes.checkpoints import edit_config, reference_model, write_weights
from tests.fakes.family_configs import CONFIGS
from tests.fakes.stand_in_gpu import StandInGpu
from tests.services.stages import greedy_tokens, load_chain, sure_tokens

PROMPT = [(7 * i + 3) % 250 for i in range(13)]
MXFP4 = {"group_size": 32, "bits": 4, "mode": "mxfp4"}
AFFINE = {"group_size": 32, "bits": 8}


def store(folder: Path, weights: dict[str, mx.array], **config: Any) -> Path:
    """Put packed weights into a folder in the place of its own."""
    mx.eval(weights)
    for file in folder.glob("*.safetensors"):
        file.unlink()
    write_weights(folder, weights)
    edit_config(folder, **config)
    return folder


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path, Path]:
    """mlx-lm's model with experts in mxfp4 and the rest in 8 bits; folders with either packing on top."""
    root = tmp_path_factory.mktemp("mixed")
    model = reference_model(make_model_folder(root / "experts", CONFIGS["gpt_oss"]))
    nn.quantize(model, class_predicate=packing_of)
    packed = [path for path, module in model.named_modules() if hasattr(module, "bits")]
    weights = dict(tree_flatten(model.parameters()))
    shutil.copytree(root / "experts", root / "rest")
    experts = {path: MXFP4 for path in packed if ".experts." in path}
    rest = {path: AFFINE for path in packed if path not in experts}
    first = store(root / "experts", weights, quantization={**AFFINE, **experts})
    return model, first, store(root / "rest", weights, quantization={**MXFP4, **rest})


def packing_of(path: str, module: Any) -> bool | dict[str, Any]:
    """The packing of a module: published checkpoints keep experts as OpenAI packed them."""
    if not hasattr(module, "to_quantized"):
        return False
    return MXFP4 if ".experts." in path else AFFINE


@pytest.mark.parametrize("counts", [(4,), (1, 3)])
def test_experts_in_mxfp4_beside_8_bits_give_the_tokens_of_mlx_lm(
    mixed: tuple[Any, Path, Path], counts: tuple[int, ...]
) -> None:
    """A module's entry counts; one without a mode is affine, whatever the whole model's mode is."""
    model, *folders = mixed
    expected = sure_tokens(model, PROMPT, 10)
    assert len(expected) > 3
    for folder in folders:
        check_model("gpt-oss", read_config(folder), read_tensors(folder))
        for backend, options in ((StandInGpu(), {"dtype": "float32"}), (CpuBackend("auto"), {})):
            chain = load_chain(folder, counts, backend, **options)
            assert greedy_tokens(chain, PROMPT, len(expected), chunk=5) == expected


@pytest.mark.parametrize("dequantize", [False, True])
def test_what_openai_published_is_served(tmp_path: Path, dequantize: bool) -> None:
    """Blocks and scales of gates and ups that alternate, named mxfp4; the plan counts what stages hold."""
    folder = make_model_folder(tmp_path / "tiny", CONFIGS["gpt_oss"])
    model = reference_model(folder)
    nn.quantize(model, class_predicate=lambda path, module: packing_of(path, module) == MXFP4 and MXFP4)
    expected = sure_tokens(model, PROMPT, 10)
    weights = as_published(dict(tree_flatten(model.parameters())))
    store(folder, weights, quantization_config={"quant_method": "mxfp4"})
    check_model("gpt-oss", read_config(folder), read_tensors(folder))
    shape = read_shape(folder, dequantize=dequantize, float_bytes=4)
    chain = load_chain(folder, (1, 3), CpuBackend("auto"), dequantize=dequantize)
    for stage in chain.stages:
        held = stage.model
        planned = shape.stage_bytes(held.layers, is_first=held.is_first, is_last=held.is_last)
        assert planned == held.weights_bytes
    assert greedy_tokens(chain, PROMPT, len(expected)) == expected


def as_published(weights: dict[str, mx.array]) -> dict[str, mx.array]:
    """MLX's tensors in OpenAI's layout."""
    parts: dict[str, mx.array] = {}
    for name, array in weights.items():
        path, _, leaf = name.rpartition(".experts.")
        module, _, what = leaf.partition(".")
        if not path or module == "up_proj":
            parts |= {} if path else {name: array}
            continue
        stored = {"weight": "_blocks", "scales": "_scales", "bias": "_bias"}[what]
        rows = array
        if module == "gate_proj":
            both = mx.stack([array, weights[f"{path}.experts.up_proj.{what}"]], axis=2)
            rows, module = both.reshape(both.shape[0], -1, *both.shape[3:]), "gate_up_proj"
        if what == "weight":
            rows = rows.view(mx.uint8).reshape(*rows.shape[:2], -1, 16)
        parts[f"{path}.experts.{module}{stored}"] = rows
    return parts


def test_step_as_published_is_refused(tmp_path: Path) -> None:
    """mlx-lm's class would add 1 to the norms of those stages alone that have experts."""
    folder = make_model_folder(tmp_path / "tiny", CONFIGS["step3p5"])
    config, tensors = read_config(folder), read_tensors(folder)
    check_model("step", config, tensors)
    tensors["model.layers.1.moe.gate.weight"] = tensors.pop("model.layers.1.mlp.gate.gate.weight")
    with pytest.raises(UnsupportedModel, match=r"step: .*mlx_lm\.convert"):
        check_model("step", config, tensors)
