"""Every option of DeepSeek's config.json, by type: followed as mlx-lm does, without effect, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from distributed.planning.checkpoint import BadCheckpoint, UnsupportedModel, read_config
from distributed.planning.families.model_config import normalise_config
from distributed.self_test.seeded_models import YARN, make_model_folder
from tests.fakes.checkpoints import reference_model
from tests.fakes.family_configs import CONFIGS
from tests.services.stages import load_chain, reference_logits

PROMPT = [(11 * i + 5) % 250 for i in range(30)]
TOLERANCE = 5e-4

V2, V3 = ("deepseek_v2",), ("deepseek_v3", "glm4_moe_lite")
INDEXED = ("deepseek_v32", "glm_moe_dsa")
SIGMOID = (*V3, *INDEXED)
ALL = (*V2, *SIGMOID)

# (types, option, value)
FOLLOWED: list[tuple[tuple[str, ...], str, Any]] = [
    (V2, "topk_method", "greedy"),
    (V2, "topk_method", {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2}),
    (V2, "n_group = topk_group", {"topk_method": "group_limited_greedy", "n_group": 2, "topk_group": 2}),
    (SIGMOID, "n_group", {"n_group": 1, "topk_group": 1}),
    (SIGMOID, "n_group", {"n_group": 2, "topk_group": 1}),
    (SIGMOID, "n_group = topk_group", {"n_group": 4, "topk_group": 4}),
    (SIGMOID, "norm_topk_prob", False),
    (SIGMOID, "norm_topk_prob", True),
    (ALL, "routed_scaling_factor", 1.0),
    (ALL, "routed_scaling_factor", 2.5),
    (ALL, "num_experts_per_tok", 1),
    (ALL, "first_k_dense_replace", 0),
    (ALL, "first_k_dense_replace", 3),
    (ALL, "moe_layer_freq", 2),
    (V2, "n_shared_experts", None),
    (ALL, "n_shared_experts", 2),
    (ALL, "attention_bias", True),
    (ALL, "attention_bias", False),
    ((*V2, *V3), "q_lora_rank", None),
    (ALL, "q_lora_rank", 64),
    (ALL, "rope_scaling", {"rope_scaling": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0}}),
    (ALL, "rope_scaling", {"rope_scaling": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.5}}),
    (ALL, "rope_scaling", {"rope_scaling": {**YARN, "factor": 4, "beta_fast": 1.0}}),
    (SIGMOID, "rope_scaling", None),
    (ALL, "rope_theta", 500000.0),
    (INDEXED, "index_topk", 20),
    (INDEXED, "index_topk", 4096),
    (INDEXED, "index_n_heads", 8),
    (INDEXED, "indexer_rope_interleave", True),
    (INDEXED, "indexer_rope_interleave", False),
]
WITHOUT_EFFECT: list[tuple[tuple[str, ...], str, Any]] = [
    (V2, "scoring_func", "softmax"),
    (V2, "norm_topk_prob", False),
    (SIGMOID, "scoring_func", "sigmoid"),
    (SIGMOID, "topk_method", "noaux_tc"),
    (ALL, "rope_interleave", True),
    (ALL, "tie_word_embeddings", False),
    (ALL, "hidden_act", "silu"),
    (ALL, "num_nextn_predict_layers", 1),
    (ALL, "ep_size", 8),
    (ALL, "pretraining_tp", 1),
    (ALL, "aux_loss_alpha", 0.001),
    (ALL, "seq_aux", True),
    (ALL, "attention_dropout", 0.1),
    (ALL, "partial_rotary_factor", 1.0),
    (ALL, "mlp_layer_types", ["dense", "sparse", "sparse", "sparse"]),
    (INDEXED, "layer_types", ["indexed_attention"] * 4),
    (INDEXED, "indexer_types", ["full"] * 4),
    (INDEXED, "index_topk_pattern", "FFFF"),
    (INDEXED, "index_topk_freq", {"index_topk_freq": 1, "index_skip_topk_offset": 3}),
]
REFUSED: list[tuple[tuple[str, ...], str, Any]] = [
    (V2, "topk_method", "noaux_tc"),
    (V2, "scoring_func", "sigmoid"),
    (V2, "norm_topk_prob", True),
    (SIGMOID, "topk_method", "greedy"),
    (SIGMOID, "topk_method", "group_limited_greedy"),
    (SIGMOID, "scoring_func", "softmax"),
    (SIGMOID, "n_group", 3),
    (SIGMOID, "n_group", 8),
    (SIGMOID, "topk_group", 5),
    (SIGMOID, "topk_group", {"topk_group": 1}),
    (ALL, "num_experts_per_tok", 9),
    (ALL, "rope_interleave", False),
    (ALL, "tie_word_embeddings", True),
    (ALL, "hidden_act", "gelu"),
    (ALL, "partial_rotary_factor", 0.5),
    (ALL, "mscale", {"rope_scaling": {**YARN, "mscale": 0.7, "mscale_all_dim": 0}}),
    (ALL, "dynamic", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}),
    (ALL, "mlp_layer_types", ["dense", "sparse", "dense", "sparse"]),
    (ALL, "mlp_layer_types", ["sparse"] * 3),
    (ALL, "sliding_attention", {"layer_types": ["full_attention", "sliding_attention"] * 2}),
    (ALL, "fp8", {"quantization_config": {"quant_method": "fp8", "fmt": "e4m3"}}),
    (ALL, "kv_lora_rank", None),
    (INDEXED, "indexer_types", ["full", "shared", "shared", "full"]),
    (INDEXED, "index_topk_pattern", "FSSS"),
    (INDEXED, "index_topk_freq", 4),
    (V3, "index_topk", 64),
]


_V3_SIZES: dict[str, Any] = {
    "vocab_size": 129280,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "first_k_dense_replace": 3,
    "moe_layer_freq": 1,
    "n_group": 8,
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "num_nextn_predict_layers": 1,
    "max_position_embeddings": 163840,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "attention_bias": False,
    "ep_size": 1,
    "pretraining_tp": 1,
    "aux_loss_alpha": 0.001,
    "seq_aux": True,
    "auto_map": {"AutoModelForCausalLM": "modeling_deepseek.DeepseekV3ForCausalLM"},
    "rope_scaling": {**YARN, "original_max_position_embeddings": 4096, "mscale": 1.0, "mscale_all_dim": 1.0},
}
_ONE_GROUP = {"n_group": 1, "topk_group": 1, "rope_scaling": None}
# Keys as published that are no other sizes; fp8 as it is once unpacked.
PUBLISHED: dict[str, dict[str, Any]] = {
    "deepseek_v3": _V3_SIZES,
    "kimi_k2": {**_V3_SIZES, "n_group": 1, "topk_group": 1, "n_routed_experts": 384, "rope_theta": 50000.0}
    | {"rope_scaling": {**_V3_SIZES["rope_scaling"], "factor": 64.0, "beta_fast": 1.0, "beta_slow": 1.0}}
    | {"num_attention_heads": 64, "num_key_value_heads": 64, "first_k_dense_replace": 1},
    "deepseek_v32": {**_V3_SIZES, "index_head_dim": 128, "index_n_heads": 64, "index_topk": 2048},
    "glm4_moe_lite": {**_V3_SIZES, **_ONE_GROUP, "partial_rotary_factor": 1.0, "attention_dropout": 0.0},
    "glm_moe_dsa": {**_V3_SIZES, **_ONE_GROUP, "head_dim": 64, "qk_head_dim": 256, "rope_interleave": True}
    | {"index_head_dim": 128, "index_n_heads": 32, "index_topk": 2048, "indexer_rope_interleave": True}
    | {"rope_theta": None, "rope_parameters": {"rope_theta": 1000000, "rope_type": "default"}},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_is_published_is_accepted(name: str) -> None:
    """At full size; what an option means stands in the tables above."""
    config = normalise_config({"model_type": name, **PUBLISHED[name]}, "config.json")
    assert config["num_hidden_layers"] == 61
    assert (config["rope_scaling"] or {"factor": None})["factor"] in (None, 40, 64.0)
    assert config.get("indexer_rope_interleave", False) == (name == "glm_moe_dsa")


def one_each(table: list[tuple[tuple[str, ...], str, Any]]) -> list[Any]:
    return [
        pytest.param(
            name, value if isinstance(value, dict) else {key: value}, key, id=f"{name}-{key}={value}"
        )
        for names, key, value in table
        for name in names
    ]


@pytest.mark.parametrize(("name", "change", "key"), one_each(FOLLOWED))
def test_an_option_is_followed(tmp_path: Path, name: str, change: dict[str, Any], key: str) -> None:
    """The numbers are those of mlx-lm with the same option."""
    folder = make_model_folder(tmp_path / "tiny", {**CONFIGS[name], **change})
    wanted = reference_logits(reference_model(folder), PROMPT)
    logits = load_chain(folder, (1, 3)).prefill(PROMPT, chunk=7)
    assert mx.allclose(logits, wanted, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(("name", "change", "key"), one_each(WITHOUT_EFFECT))
def test_an_option_has_no_effect(name: str, change: dict[str, Any], key: str) -> None:
    """What the class is made of is the same without it."""
    plain, changed = (normalise_config({**CONFIGS[name], **extra}, "config.json") for extra in ({}, change))
    for config in (plain, changed):
        for option in change:
            config.pop(option, None)
    assert plain == changed


@pytest.mark.parametrize(("name", "change", "key"), one_each(REFUSED))
def test_an_option_is_refused(name: str, change: dict[str, Any], key: str) -> None:
    """By its name, before weights are read."""
    with pytest.raises((UnsupportedModel, BadCheckpoint), match=key):
        normalise_config({**CONFIGS[name], **change}, "config.json")


def test_a_config_of_transformers_names_its_dense_layers(tmp_path: Path) -> None:
    """A list of kinds of layers in the place of first_k_dense_replace."""
    config = {**CONFIGS["glm4_moe_lite"], "mlp_layer_types": ["dense", "dense", "sparse", "sparse"]}
    assert read_config(make_model_folder(tmp_path, config))["first_k_dense_replace"] == 2
