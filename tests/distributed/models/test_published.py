"""Sizes of published models: they are what mlx-lm's classes make, and what headers of files would say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from distributed.models.published import build_published, main, measure
from distributed.planning.checkpoint import TensorInfo, read_tensors
from distributed.planning.families.model_config import normalise_config
from distributed.planning.families.served import FAMILIES
from distributed.planning.model_shape import make_shape
from distributed.planning.published import (
    CONFIGS,
    expand_sizes,
    find_published,
    list_published,
    read_published,
)
from distributed.planning.stage_files import check_tensors
from distributed.self_test.seeded_models import write_weights

# All bytes of the tensors, as published: exact, or as rounded on the model's page.
PUBLISHED_BYTES = {
    "DeepSeek-V3.1-4bit": (378e9, 0.5e9),
    "GLM-4.6-4bit": (198_556_925_568, 0),  # of GLM-4.7, which has the same shape
    "GLM-4.6-8bit": (374_918_665_142, 1e6),  # of GLM-4.7, with the headers of its files
    "Kimi-K2-Instruct-4bit": (578e9, 0.5e9),
    "Qwen3-Coder-30B-A3B-Instruct-4bit": (17.18e9, 0.01e9),
    "gpt-oss-120b-MXFP4-Q8": (63e9, 0.5e9),
}
# Every key that a type has becomes small; 160 is no multiple of the packing's group size.
SMALL = {
    "vocab_size": 256,
    "hidden_size": 128,
    "intermediate_size": 160,
    "moe_intermediate_size": 64,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "n_routed_experts": 32,
    "num_experts": 8,
    "num_local_experts": 8,
    "kv_lora_rank": 64,
    "q_lora_rank": 64,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 32,
    "v_head_dim": 64,
    "layer_types": ["sliding_attention", "full_attention"] * 2 + ["full_attention"],
}


def test_the_file_is_what_the_classes_make() -> None:
    """Else: python -m distributed.models.published --write."""
    assert main([]) == 0


def make_small(config: Mapping[str, Any]) -> dict[str, Any]:
    """Make the config of a small model of the same type, options and packing."""
    small = {key: value for key, value in SMALL.items() if config.get(key) is not None}
    if config["model_type"] == "gpt_oss":
        small["intermediate_size"] = 128  # of its experts, whose packing has no remainder
    return {**config, **small}


def without_files(tensors: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    return {name: replace(info, file="") for name, info in tensors.items()}


@pytest.mark.parametrize("name", CONFIGS)
def test_sizes_of_a_class_are_those_that_the_headers_of_its_files_name(tmp_path: Path, name: str) -> None:
    """A small model is built by the same path, once measured and once written; byte for byte."""
    config = make_small(CONFIGS[name])
    sizes = measure(build_published(config))
    assert any("-" in place and place.split("-")[0] != place.split("-")[1] for place in sizes)
    weights = dict(tree_flatten(build_published(config).parameters()))
    mx.eval(weights)
    write_weights(tmp_path, weights, num_files=2)
    found = read_tensors(tmp_path)
    assert without_files(found) == expand_sizes(sizes)
    if config["model_type"] in FAMILIES:
        normal = normalise_config(config, name)
        for dequantize, float_bytes in ((False, None), (False, 4), (True, 4)):
            shapes = [
                make_shape(name, normal, tensors, dequantize=dequantize, float_bytes=float_bytes)
                for tensors in (found, expand_sizes(sizes))
            ]
            assert shapes[0] == shapes[1]


@pytest.mark.parametrize("name", list_published())
def test_a_published_model_would_be_served_with_these_tensors(name: str) -> None:
    """The checks that a folder passes."""
    config, tensors = read_published(name)
    check_tensors(name, config, tensors)
    shape = make_shape(name, config, tensors)
    assert shape.weights_bytes == sum(info.num_bytes for info in tensors.values())


@pytest.mark.parametrize("name", PUBLISHED_BYTES)
def test_bytes_of_all_tensors_are_those_of_the_published_files(name: str) -> None:
    """Where their size is known."""
    tensors = expand_sizes(measure(build_published(CONFIGS[name])))
    known, slack = PUBLISHED_BYTES[name]
    assert sum(info.num_bytes for info in tensors.values()) == pytest.approx(known, rel=0, abs=slack)


def test_a_published_model_is_found_whoever_owns_it() -> None:
    """By the last part of its name, in any case."""
    assert find_published("mlx-community/glm-4.6-4BIT") == "GLM-4.6-4bit"
    assert find_published("GLM-4.6-4bit") == "GLM-4.6-4bit"
    assert find_published("mlx-community/GLM-4.6") is None
