"""config.json: spellings of one model, keys that are refused by name, keys that change nothing."""

import contextlib
import json
import math
import re
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from distributed.models import open_stage
from distributed.planning.checkpoint import BadCheckpoint, UnsupportedModel, read_config
from distributed.planning.families.model_config import NEEDED_KEYS, normalise_config
from distributed.planning.families.served import FAMILIES
from distributed.planning.families.window_config import layer_windows
from distributed.self_test.seeded_models import make_model_folder
from prompts.mlx_lm_import import import_mlx_lm
from tests.fakes.checkpoints import VARIANTS, edit_config, make_checkpoint
from tests.fakes.family_configs import CONFIGS

SIZES = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
}
LATENT = {"kv_lora_rank": 48, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 24}
LATENT_TYPES = [name for name, record in FAMILIES.items() if record.kv == "latent"]
PLAIN = {"rope_theta": 500000.0, "rope_scaling": None}
YARN = {"factor": 4.0, "original_max_position_embeddings": 1024}
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 1024,
}


def make_config(model_type: str, **changes: Any) -> dict[str, Any]:
    """A config of the type with nothing beyond sizes and rotation."""
    experts = {"num_experts": 8, "num_experts_per_tok": 2} if model_type == "qwen3_moe" else {}
    sizes = SIZES | (LATENT if model_type in LATENT_TYPES else {}) | experts
    rope: dict[str, Any] = {"rope_theta": 10000.0, "rope_type": "default"}
    window = {"sliding_window": None} if model_type == "mistral" else {}
    return {"model_type": model_type, **sizes, **window, "rope_parameters": rope, **changes}


def normalise(config: dict[str, Any]) -> dict[str, Any]:
    """Normalise as if the config had come from a file."""
    return normalise_config(json.loads(json.dumps(config)), "config.json")


# What transformers calls minimax is another model; it knows the last four with a text_config only.
UNKNOWN = (
    *("deepseek", "iquestcoder", "joyai_llm_flash", "kimi_k2", "mimo", "mimo_v2_flash", "minimax"),
    *("muse_glimmer", "step3p5", "xverse", "qwen2_5_vl", "qwen2_vl", "qwen3_5", "qwen3_5_moe"),
)
COMPARED = [name for name in FAMILIES if name not in UNKNOWN]
NEEDED: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": None},
    "deepseek_v2": {"num_experts_per_tok": 6},
    "dots1": {"n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "glm4_moe": {"head_dim": 128},
    "falcon_h1": {"mamba_d_ssm": 1024, "mamba_d_head": 8, "mamba_chunk_size": 256},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 16},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 16},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 16},
    "gemma4_text": {"hidden_size_per_layer_input": 0},
    "nemotron": {"num_key_value_heads": 8},
    "nemotron_h": {
        "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"],
        "n_routed_experts": 8,
        "time_step_min": 0.001,  # not read, as the next
        "time_step_max": 0.1,
    },
}


def default_config(model_type: str) -> Any:
    from transformers import AutoConfig

    return AutoConfig.for_model(model_type, **NEEDED.get(model_type, {}))


def arguments_of(config: dict[str, Any]) -> Any:
    """What mlx-lm's class is made from."""
    return arguments_class(config["model_type"]).from_dict({"tie_word_embeddings": False, **config})


def arguments_class(runs_as: str) -> Any:
    """The class of what mlx-lm makes a text model from."""
    if runs_as.startswith("qwen3_5"):
        return import_mlx_lm("models.qwen3_5").TextModelArgs
    return import_mlx_lm(f"models.{runs_as}").ModelArgs


@pytest.mark.parametrize("model_type", COMPARED)
def test_what_transformers_writes_by_itself_is_accepted(model_type: str) -> None:
    """Every key of transformers' own config class, at its default, is served."""
    written = default_config(model_type)
    config = normalise(written.to_dict())
    for key in ("num_key_value_heads", "max_position_embeddings", "hidden_size", "head_dim"):
        wanted = written.to_dict().get(key)
        assert wanted is None or model_type in LATENT_TYPES or config[key] == wanted, key
    if (given := getattr(written, "rope_parameters", None)) is not None:  # nemotron_h has no positions
        read, wanted = (
            rope.get("full_attention", rope)["rope_theta"]
            for rope in (config.get("rope_parameters") or config, given)
        )
        assert read == wanted


@pytest.mark.parametrize("model_type", COMPARED)
def test_absent_keys_mean_what_they_mean_to_transformers(model_type: str) -> None:
    """Defaults are those of transformers' classes, not those of mlx-lm's."""
    full = default_config(model_type).to_dict()
    kept = {*NEEDED_KEYS, *NEEDED.get(model_type, {}), "intermediate_size", "tie_word_embeddings"}
    kept |= {*LATENT, "moe_intermediate_size"} if model_type in LATENT_TYPES else set()
    kept |= {"moe_intermediate_size"} if model_type == "dots1" else set()
    short = {key: value for key, value in full.items() if key in kept}
    if model_type == "deepseek_v2":
        full |= dict.fromkeys(("n_routed_experts", "n_shared_experts", "num_experts_per_tok"))
        short |= dict.fromkeys(("n_routed_experts", "num_experts_per_tok"))
    if model_type in ("apertus", "gpt_oss", "ministral3"):
        short["rope_parameters"] = full["rope_parameters"]
    assert arguments_of(normalise(short)) == arguments_of(normalise(full))


# Keys as published that are no sizes.
PUBLISHED: dict[str, dict[str, Any]] = {
    "glm4_moe": {
        "attention_bias": True,
        "partial_rotary_factor": 0.5,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "use_qk_norm": False,
        "head_dim": 128,
        "num_attention_heads": 96,
        "hidden_size": 4096,
        "n_group": 1,
        "topk_group": 1,
        "n_routed_experts": 128,
        "n_shared_experts": 1,
        "num_experts_per_tok": 8,
        "first_k_dense_replace": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.0,
        "num_nextn_predict_layers": 1,
    },
    "lfm2": {
        "block_auto_adjust_ff_dim": True,
        "block_dim": 64,
        "block_ff_dim": 96,
        "block_mlp_init_scale": 1.0,
        "block_norm_eps": 1e-5,
        "block_out_init_scale": 1.0,
        "block_use_swiglu": True,
        "conv_L_cache": 3,
        "conv_dim": 64,
        "conv_use_xavier_init": True,
        "full_attn_idxs": [2],
        "num_heads": 4,
        "rope_theta": 1000000.0,
        "use_pos_enc": True,
    },
    "nemotron_h": {
        "attention_head_dim": 128,
        "chunk_size": 128,
        "conv_kernel": 4,
        "expand": 2,
        "hybrid_override_pattern": "M-*-",
        "layer_norm_epsilon": 1e-5,
        "mamba_head_dim": 64,
        "mamba_hidden_act": "silu",
        "mamba_num_heads": 128,
        "mamba_proj_bias": False,
        "mlp_hidden_act": "relu2",
        "n_groups": 8,
        "rescale_prenorm_residual": True,
        "residual_in_fp32": False,
        "sliding_window": None,
        "ssm_state_size": 128,
        "time_step_limit": [0.0, math.inf],
        "time_step_rank": 256,
        "use_bias": False,
        "use_conv_bias": True,
    },
    "qwen3_5_text": {
        "attn_output_gate": True,
        "full_attention_interval": 4,
        "layer_types": [*["linear_attention"] * 3, "full_attention"],
        "mamba_ssm_dtype": "float32",
        "mlp_only_layers": [],
        "mtp_num_hidden_layers": 1,
        "rope_parameters": {
            "mrope_interleaved": True,
            "mrope_section": [11, 11, 10],
            "partial_rotary_factor": 0.25,
            "rope_theta": 10000000,
            "rope_type": "default",
        },
    },
    "qwen3_next": {
        "decoder_sparse_step": 1,
        "full_attention_interval": 4,
        "mlp_only_layers": [],
        "norm_topk_prob": True,
        "num_experts": 512,
        "num_experts_per_tok": 10,
        "partial_rotary_factor": 0.25,
        "rope_scaling": None,
        "shared_expert_intermediate_size": 512,
    },
    "minimax_m2": {
        "attn_type_list": [1, 1, 1, 1],
        "layernorm_full_attention_beta": 1.0,
        "layernorm_linear_attention_beta": 1.0,
        "layernorm_mlp_beta": 1.0,
        "mlp_intermediate_size": 8192,
        "mtp_transformer_layers": 1,
        "num_mtp_modules": 3,
        "qk_norm_type": "per_layer",
        "rotary_dim": 64,
        "router_aux_loss_coef": 0.001,
        "router_jitter_noise": 0.0,
        "scoring_func": "sigmoid",
        "shared_intermediate_size": 0,
        "shared_moe_mode": "sigmoid",
        "sliding_window": None,
        "use_mtp": True,
        "use_qk_norm": True,
        "use_routing_bias": True,
    },
    "phi3": {
        "attention_bias": False,
        "embd_pdrop": 0.0,
        "original_max_position_embeddings": 4096,
        "partial_rotary_factor": 1.0,
        "resid_pdrop": 0.0,
        "rope_scaling": None,
        "sliding_window": None,
    },
    "qwen2_5_vl": {
        "rope_scaling": {"type": "mrope", "mrope_section": [4, 2, 2]},
        "use_sliding_window": False,
        "sliding_window": 32768,
        "max_window_layers": 70,
        "vision_config": {"depth": 32, "hidden_act": "silu"},
    },
}


@pytest.mark.parametrize("model_type", PUBLISHED)
def test_what_is_published_is_accepted(model_type: str) -> None:
    """Keys of the first releases, before transformers had a class."""
    config = normalise({"model_type": model_type, **SIZES, **PUBLISHED[model_type]})
    assert config["rope_scaling"] is None
    for key in ("rotary_dim", "partial_rotary_factor"):
        assert key not in PUBLISHED[model_type] or config[key] == PUBLISHED[model_type][key]


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_record_says_what_the_class_reads(model_type: str) -> None:
    """A key is called honoured only where mlx-lm's class asks for it."""
    family, read = FAMILIES[model_type], read_keys(model_type)
    implied = {
        **{name: {"head_dim", "qk_head_dim"} for name in LATENT_TYPES},
        "exaone_moe": {"first_k_dense_replace"},  # is_moe_layer
        # Weights have been multiplied by the factors, unless torch wrote them.
        "falcon_h1": {key for key in family.honoured if "multiplier" in key} - read,
        "laguna": {"local_partial_rotary_factor"},  # rope_parameters
        "minimax": {"partial_rotary_factor"},  # rotary_dim
        "nemotron_h": {"layers_block_type"},  # layer_types
        "smollm3": {"no_rope_layer_interval"},  # no_rope_layers
    }
    assert family.honoured - read == implied.get(family.runs_as, set())
    assert "tie_word_embeddings" in read | family.neutral.keys()


def read_keys(model_type: str) -> set[str]:
    """The arguments that the class asks for while a tiny model is built and run."""
    config = CONFIGS[model_type]
    runs_as = FAMILIES[model_type].runs_as
    module = import_mlx_lm(f"models.{runs_as}")
    read: set[str] = set()

    class Watched(arguments_class(runs_as)):  # type: ignore[misc]
        def __getattribute__(self, name: str) -> Any:
            read.add(name)
            return super().__getattribute__(name)

    arguments = Watched.from_dict({**config, "model_type": runs_as})
    read.clear()
    if issubclass(Watched, module.ModelArgs):
        model = module.Model(arguments)
    else:  # the text model within one that sees
        model = import_mlx_lm("models.qwen3_5").TextModel(arguments)
    model(mx.array([[1, 2, 3]]))
    if hasattr(model, "sanitize"):
        with contextlib.suppress(KeyError):
            model.sanitize({})
    return read


SPELLINGS = [
    ({"rope_theta": 500000.0}, {"rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"}}),
    ({"rope_theta": 500000.0}, {"rope_parameters": {"rope_theta": 500000.0}, "rope_scaling": None}),
    ({"rope_theta": 500000.0}, {"rope_theta": 500000.0, "rope_scaling": {"rope_type": "default"}}),
    (
        {"rope_theta": 500000.0, "rope_scaling": {"type": "yarn", **YARN}},
        {"rope_parameters": {"rope_theta": 500000.0, "rope_type": "yarn", **YARN}},
    ),
    (
        {"rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
        {"rope_parameters": {"rope_theta": 500000.0, "rope_type": "llama3", **LLAMA3}},
    ),
    (
        {"rope_scaling": {"type": "yarn", **YARN}},
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}, "original_max_position_embeddings": 1024},
    ),
    (
        {"rope_scaling": {"type": "yarn", **YARN}},
        {"rope_scaling": {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 1024}},
    ),
    (
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    ),
    ({"num_key_value_heads": 4}, {"num_key_value_heads": None}),
    ({}, {"tie_word_embeddings": None, "rms_norm_eps": None}),
    ({}, {"dtype": "bfloat16", "torch_dtype": "float16", "use_cache": True}),
    ({"quantization": {"group_size": 64, "bits": 4}}, {"quantization_config": {"group_size": 64, "bits": 4}}),
]


@pytest.mark.parametrize(("one", "other"), SPELLINGS)
@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3", "qwen3_moe", "deepseek_v2"])
def test_two_spellings_are_one_model(model_type: str, one: dict[str, Any], other: dict[str, Any]) -> None:
    """Transformers 4, transformers 5 and mlx-lm write the same model differently."""
    first, second = (
        normalise({**make_config(model_type), "rope_parameters": None, **change}) for change in (one, other)
    )
    for config in (first, second):
        for key in ("dtype", "torch_dtype", "use_cache"):
            config.pop(key, None)
    assert first == second


SWITCHED = {"use_sliding_window": True, "sliding_window": 128}
WINDOWS = [
    ("mistral", {"sliding_window": 128}, [128] * 4),
    ("ministral3", {"sliding_window": 128}, [128] * 4),
    ("qwen2", {"sliding_window": 128, "max_window_layers": 2}, []),
    (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 128, "max_window_layers": 2},
        [None, None, 128, 128],
    ),
    ("qwen3", {**SWITCHED, "layer_types": ["full_attention"] * 4}, []),
    ("gemma2", {"sliding_window": 128}, [128, None] * 2),
    ("gemma3_text", {"sliding_window": 128, "_sliding_window_pattern": 3}, [128, 128, None, 128]),
    ("exaone4", {"sliding_window": 128, "sliding_window_pattern": "LLG"}, [128, 128, None, 128]),
    ("exaone4", {"sliding_window": None}, []),
    ("gpt_oss", {"sliding_window": 8192}, [8192, None] * 2),
]


@pytest.mark.parametrize(("model_type", "change", "windows"), WINDOWS)
def test_each_layer_has_the_window_that_transformers_gives_it(
    model_type: str, change: dict[str, Any], windows: list[int | None]
) -> None:
    """By layer_types, else by a pattern or by the number of the layer."""
    assert layer_windows(normalise(make_config(model_type, **change))) == tuple(windows)


def test_expert_counts_have_one_name() -> None:
    """num_local_experts, num_experts and n_routed_experts are the same number."""
    moe = {"num_experts_per_tok": 2}
    for name in ("num_experts", "num_local_experts"):
        config = normalise({**make_config("qwen3_moe"), "num_experts": None, **moe, name: 16})
        assert config["num_experts"] == 16
    for name in ("n_routed_experts", "num_experts", "num_local_experts"):
        assert normalise(make_config("deepseek_v2", **moe, **{name: 16}))["n_routed_experts"] == 16


def test_a_module_inherits_no_mode_of_packing() -> None:
    """Of a model with mxfp4 experts, as gpt-oss is published, the other modules are packed with 8 bits."""
    packed = {"group_size": 32, "bits": 4, "mode": "mxfp4", "lm_head": {"group_size": 64, "bits": 8}}
    assert normalise(make_config("llama", quantization=packed))["quantization"] == packed


def test_mistral_runs_as_llama() -> None:
    """mlx-lm has no class of its own for it; without a window it is a llama."""
    assert normalise(make_config("mistral"))["model_type"] == "llama"


def test_a_text_config_is_the_model_within_one_that_sees() -> None:
    """Its keys are checked, the packing outside it counts; the weights decide whether the head is tied."""
    packed = {"group_size": 64, "bits": 4, "language_model.lm_head": {"group_size": 32, "bits": 8}}
    inner = make_config("ministral3", tie_word_embeddings=False)
    outer = {"model_type": "mistral3", "text_config": inner, "vision_config": {}, "tie_word_embeddings": True}
    config = normalise({**outer, "quantization": packed})
    assert config["quantization"] == {"group_size": 64, "bits": 4, "lm_head": {"group_size": 32, "bits": 8}}
    expected = normalise(inner)
    del config["quantization"], expected["tie_word_embeddings"]
    assert config == expected
    with pytest.raises(UnsupportedModel, match="logit_scale"):
        normalise({**outer, "text_config": {**inner, "logit_scale": 2.0}})
    with pytest.raises(BadCheckpoint, match="hidden_size = '64'"):
        normalise({**outer, "text_config": {**inner, "hidden_size": "64"}})


def test_a_text_config_may_leave_out_what_is_usual() -> None:
    """As Gemma 3 4B is published: heads and vocabulary are those of transformers' class."""
    sizes = {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34, "sliding_window": 1024}
    rope = {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}}
    config = normalise(
        {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", **sizes, **rope}}
    )
    heads = [config[key] for key in ("num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size")]
    assert heads == [8, 4, 256, 262208]
    assert layer_windows(config)[4:7] == (1024, None, 1024)
    assert (config["rope_theta"], config["rope_local_base_freq"]) == (1e6, 1e4)


def test_yarn_factors_are_those_of_transformers() -> None:
    """attention_factor, and mscale with and without mscale_all_dim, in the words of mlx-lm's class."""
    for given, expected in (
        ({}, 0.1 * math.log(4) + 1),
        ({"attention_factor": 1.3}, 1.3),
        ({"attention_factor": 1.0}, 1.0),
        ({"mscale": 0.5}, 0.1 * math.log(4) + 1),
        ({"mscale": 1.0, "mscale_all_dim": 0.5}, (0.1 * math.log(4) + 1) / (0.05 * math.log(4) + 1)),
    ):
        scaling = normalise(make_config("llama", rope_parameters={"rope_type": "yarn", **YARN, **given}))[
            "rope_scaling"
        ]
        factors = [0.1 * scaling[key] * math.log(4) + 1 for key in ("mscale", "mscale_all_dim")]
        assert factors[0] / factors[1] == pytest.approx(expected)


SLIDING, FULL = "sliding_attention", "full_attention"
BY_TYPE = {FULL: {"rope_theta": 1e4, "rope_type": "yarn", **YARN}, SLIDING: {"rope_theta": 1e4}}
STEP = {"layer_types": [FULL, SLIDING] * 2}
PAIRS = {"sliding_window_pattern": 2}
PLAIN_GEMMA4 = {**PAIRS, "hidden_size_per_layer_input": 0, "rope_parameters": None}

REFUSED = [
    ("gemma3n", {}, r"gemma3n.*served are .*deepseek_v2, .*llama"),
    ("idefics3", {"text_config": {"model_type": "llama"}}, r"idefics3.*text_config.*llama.*served are"),
    ("mistral3", {"text_config": {"model_type": "gemma3n_text"}}, r"mistral3.*gemma3n_text.*served are"),
    ("llama", {"text_config": {"model_type": "llama"}}, "text_config"),
    ("llama", {"model_file": "evil.py"}, r"evil\.py.*own code"),
    ("llama", {"hidden_act": "gelu"}, r"hidden_act = 'gelu'.*silu"),
    ("llama", {"partial_rotary_factor": 0.5}, r"partial_rotary_factor = 0\.5.*1\.0 is"),
    (
        "llama",
        {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}},
        r"'dynamic'.*default, linear, llama3, yarn",
    ),
    ("llama", {"rope_scaling": {"type": "longrope", "long_factor": [1.0]}}, "longrope"),
    ("llama", {"rope_scaling": {"type": "mrope", "mrope_section": [1, 2, 3]}}, "mrope"),
    ("ministral3", {"rope_scaling": {"type": "yarn", **YARN, "truncate": False}}, r"truncate = False"),
    ("llama", {"rope_scaling": {"type": "yarn", **YARN, "truncate": 1}}, r"truncate = 1"),
    ("llama", {"rope_scaling": {"type": "yarn", **YARN, "new_key": 3}}, r"new_key = 3"),
    ("llama", {"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "full_attention"),
    ("llama", {"layer_types": ["full_attention", "sliding_attention"] * 2}, "sliding_attention"),
    ("llama", {"logit_scale": 0.0625}, r"logit_scale = 0\.0625"),
    ("llama", {"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
    ("llama", {"residual_multiplier": 0.22}, "residual_multiplier"),
    ("llama", {"embedding_multiplier": 12}, "embedding_multiplier"),
    ("llama", {"attention_multiplier": 0.0078}, "attention_multiplier"),
    ("llama", {"no_rope_layers": [1, 0, 1, 0]}, "no_rope_layers"),
    ("llama", {"use_qk_norm": True}, "use_qk_norm"),
    ("llama", {"num_local_experts": 8, "num_experts_per_tok": 2}, "num_local_experts = 8"),
    ("llama", {"alibi": True}, "alibi"),
    ("llama", {"attention_chunk_size": 8192}, "attention_chunk_size"),
    ("llama", {"is_causal": False}, "is_causal"),
    ("llama", {"quantize_activations": True}, "quantize_activations"),
    ("llama", {"quantization_config": {"quant_method": "fp8"}}, r"fp8.*mlx_lm\.convert .* plain weights"),
    ("deepseek_v3", {"quantization_config": {"quant_method": "fp8"}}, r"fp8.*mlx_lm\.convert .* these"),
    ("llama", {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128}}, "gptq"),
    ("llama", {"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 128}}, "awq"),
    (
        "llama",
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
        "bitsandbytes",
    ),
    ("llama", {"compression_config": {"quant_method": "compressed-tensors"}}, "compressed-tensors"),
    ("minimax_m2", {"quantization_config": {"quant_method": "fp8", "fmt": "float8_e4m3fn"}}, "fp8"),
    ("minimax_m2", {"attn_type_list": [1, 0, 1, 1]}, "attn_type_list"),
    ("minimax_m2", {"shared_intermediate_size": 64}, "shared_intermediate_size = 64"),
    ("qwen2_moe", {"mlp_only_layers": [1]}, r"mlp_only_layers = \[1\]"),
    ("mixtral", {"head_dim": 32}, "head_dim = 32"),
    ("cohere", {"tie_word_embeddings": False}, "tie_word_embeddings"),
    ("granite", {"residual_multipliers": 0.5}, "residual_multipliers"),
    ("llama", {"rope_scaling": {"type": "mrope", "mrope_section": [4, 2, 2]}}, "'mrope'"),
    ("llama", {"quantization": {"group_size": 64, "bits": 4, "mode": "new"}}, "'new'"),
    ("qwen3_moe", SWITCHED, r"sliding_window = 128"),
    (
        "qwen2_moe",
        {"use_sliding_window": True, "sliding_window": 128, "max_window_layers": 2},
        "window = 128",
    ),
    ("minimax_m2", {"sliding_window": 128}, r"sliding_window = 128"),
    ("gpt_oss", {"swiglu_limit": 5.0}, r"swiglu_limit = 5\.0.*7\.0 is"),
    ("gpt_oss", {"layer_types": [SLIDING] * 4}, "layers of one type alone"),
    ("gpt_oss", {"layer_types": [SLIDING, "chunked_attention"] * 2}, "chunked_attention"),
    ("gemma3_text", {"layer_types": [SLIDING, FULL, FULL, SLIDING]}, "does not repeat"),
    ("gemma3_text", {**PAIRS, "attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
    ("gemma3_text", {**PAIRS, "use_bidirectional_attention": True}, "use_bidirectional_attention"),
    ("gemma3_text", {**PAIRS, "rope_parameters": BY_TYPE | {SLIDING: {"rope_type": "yarn"}}}, "scaled"),
    ("olmo3", {"rope_parameters": BY_TYPE | {SLIDING: {"rope_theta": 2e4}}}, "rope_theta for each type"),
    (
        "olmo3",
        {"rope_parameters": BY_TYPE | {"chunked_attention": {}}},
        "chunked_attention in rope_parameters",
    ),
    ("exaone4", {"layer_types": [FULL] * 4}, "sliding_window = 4096 without a layer"),
    ("step3p5", {**STEP, "yarn_only_types": [SLIDING]}, "yarn_only_types"),
    (
        "step3p5",
        {**STEP, "rope_theta": [1e4, 1e4, 2e4, 1e4]},
        "layers of type 'full_attention' with rope_theta",
    ),
    ("step3p5", {**STEP, "attention_other_setting": {"num_attention_groups": 1}}, "num_attention_groups = 1"),
    ("gemma4_text", {**PLAIN_GEMMA4, "num_kv_shared_layers": 2}, "num_kv_shared_layers = 2"),
    ("gemma4_text", {**PAIRS, "rope_parameters": None}, r"hidden_size_per_layer_input = 256.*0 is"),
    ("gemma4_text", {**PLAIN_GEMMA4, "use_bidirectional_attention": "all"}, "use_bidirectional_attention"),
    ("gemma4_text", {**PLAIN_GEMMA4, "per_layer_config": {"0": {"head_dim": 8}}}, "between layers of one"),
    ("gemma4_text", {**PLAIN_GEMMA4, "per_layer_config": {"1": {"a": 8}, "3": {"a": 8}}}, "a in per_layer"),
    (
        "gemma4_text",
        {**PLAIN_GEMMA4, "rope_parameters": {FULL: {"rope_type": "yarn"}, SLIDING: {}}},
        "'yarn' of full_attention",
    ),
    ("mellum", {"layer_types": [SLIDING] * 4}, "layers of one type alone"),
    ("laguna", {"gating": "per-element"}, "gating = 'per-element'"),
    ("laguna", {"moe_apply_router_weight_on_input": True}, "moe_apply_router_weight_on_input"),
    ("qwen2", {"head_dim": 32}, r"head_dim = 32"),
    ("qwen3", {"attention_bias": True}, r"attention_bias = True.*False is"),
    ("qwen3_moe", {"scoring_func": "sigmoid"}, "sigmoid"),
    (
        "qwen3_next",
        {"layer_types": ["full_attention", "linear_attention"] * 2},
        "full_attention_interval = 1",
    ),
    ("qwen3_next", {"mlp_only_layers": [1]}, r"mlp_only_layers = \[1\]"),
    ("qwen3_next", {"full_attention_interval": 5}, "no layer attends"),
    ("lfm2", {"layer_types": ["conv"] * 4}, "no layer attends"),
    ("lfm2", {"layer_types": ["conv", "sliding_attention"] * 2}, "sliding_attention"),
    ("lfm2", {"full_attn_idxs": [1], "block_dim": 32}, "block_dim = 32"),
    ("lfm2", {"full_attn_idxs": [1], "sliding_window": 32}, "sliding_window = 32"),
    ("nemotron_h", {"hybrid_override_pattern": "M*X-"}, "'X'"),
    (
        "nemotron_h",
        {"hybrid_override_pattern": "M*M-", "rope_scaling": {"type": "yarn", **YARN}},
        "rope_scaling",
    ),
    (
        "granitemoehybrid",
        {"layer_types": ["mamba", "attention"] * 2, "mamba_n_groups": 2},
        "mamba_n_groups = 2",
    ),
    ("falcon_h1", {"mamba_d_ssm": 8192, "mamba_rms_norm": True, "mamba_n_groups": 2}, "mamba_rms_norm"),
    ("deepseek_v2", {"norm_topk_prob": True}, "norm_topk_prob"),
    ("deepseek_v2", {"rope_interleave": False}, "rope_interleave"),
    ("deepseek_v2", {"tie_word_embeddings": True}, "tie_word_embeddings"),
    ("deepseek_v2", {"n_routed_experts": 8, "num_experts_per_tok": 2, "topk_method": "noaux_tc"}, "noaux_tc"),
    ("deepseek_v2", {"rope_scaling": {"type": "yarn", **YARN, "mscale": 0.7}}, "mscale_all_dim alone"),
    (
        "deepseek_v2",
        {"rope_scaling": {"type": "yarn", **YARN, "mscale_all_dim": 0.7}},
        "mscale_all_dim alone",
    ),
]


@pytest.mark.parametrize(("model_type", "change", "reason"), REFUSED)
def test_what_would_change_numbers_in_silence_is_refused(
    model_type: str, change: dict[str, Any], reason: str
) -> None:
    """The sentence names the file, the key, its value and what is served."""
    base = make_config(model_type)
    if "rope_scaling" in change:
        base.pop("rope_parameters")
    with pytest.raises(UnsupportedModel, match=rf"^config\.json: .*{reason}"):
        normalise({**base, **change})


@pytest.mark.parametrize(
    ("model_type", "change"),
    [
        (
            "llama",
            {"attention_dropout": 0.1, "resid_pdrop": 0.1, "embd_pdrop": 0.1, "hidden_dropout_prob": 0.1},
        ),
        ("llama", {"is_llama_config": True, "rope_interleaved": False, "pretraining_tp": 2}),
        (
            "llama",
            {"_attn_implementation": "sdpa", "attn_implementation": "eager", "_flash_attn_2_enabled": True},
        ),
        (
            "llama",
            {"unsloth_fixed": True, "auto_map": {"AutoModel": "x.Y"}, "transformers.js_config": {"a": 1}},
        ),
        ("llama", {"temperature": 0.6, "top_p": 0.9, "top_k": 50, "repetition_penalty": 1.1}),
        (
            "llama",
            {"logit_scale": 1.0, "residual_multiplier": 1, "final_logit_softcapping": None, "alibi": False},
        ),
        ("llama", {"sliding_window": 128, "layer_types": ["full_attention"] * 4}),
        ("llama", {"rope_scaling": {"type": "default"}, "rope_parameters": None}),
        ("llama", {"rope_traditional": True, "attention_bias": True, "mlp_bias": True}),
        (
            "qwen2",
            {"use_sliding_window": False, "sliding_window": 128, "max_window_layers": 2, "use_mrope": False},
        ),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 128, "max_window_layers": 4}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 4096, "max_window_layers": 2}),
        ("qwen2", {"attention_bias": True, "head_dim": 16}),
        ("mistral", {"sliding_window": 4096, "head_dim": None}),
        (
            "qwen3_moe",
            {"router_aux_loss_coef": 0.001, "router_jitter_noise": 0.1, "output_router_logits": True},
        ),
        ("deepseek_v2", {"aux_loss_alpha": 0.001, "seq_aux": True, "ep_size": 1, "scoring_func": "softmax"}),
        ("deepseek_v2", {"q_lora_rank": None, "n_shared_experts": None, "norm_topk_prob": False}),
        ("deepseek_v2", {"rope_scaling": {"type": "yarn", **YARN, "mscale": 1.0}, "rope_parameters": None}),
        (
            "llama",
            {
                "quantization": {"group_size": 64, "bits": 4},
                "quantization_config": {"group_size": 64, "bits": 4},
            },
        ),
    ],
)
def test_what_changes_no_numbers_is_accepted(model_type: str, change: dict[str, Any]) -> None:
    """Keys for training, sampling and other programs, and switches that are off."""
    assert normalise(make_config(model_type, **change))["num_hidden_layers"] == 4


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model_type": "gemma2", "sliding_window": None}, "no sliding_window"),
        ({"model_type": "cohere2", "sliding_window_pattern": 0}, "sliding_window_pattern = 0"),
        ({"model_type": "exaone4", "sliding_window_pattern": "LLX"}, "sliding_window_pattern = 'LLX'"),
        ({"model_type": "exaone_moe", "is_moe_layer": [True]}, "is_moe_layer = "),
        ({"model_type": "exaone_moe", "mlp_layer_types": ["thick"] * 4}, "mlp_layer_types = "),
        ({"model_type": "gemma4_text", "sliding_window_pattern": 2}, "no full_attention"),
        ({"model_type": "laguna", "num_attention_heads_per_layer": [3] * 4}, "multiples of 2"),
        ({"model_type": "laguna", "mlp_layer_types": ["dense"] * 4, "mlp_only_layers": [0]}, "contradicts"),
        ({"model_type": "mimo_v2_flash"}, "hybrid_layer_pattern = None"),
        ({"model_type": "step3p5"}, "no layer_types"),
        ({"model_type": "step3p5", "layer_types": [FULL]}, "layer_types names 1 layers"),
        ({"rope_theta": [1e4] * 4, "rope_parameters": None}, "rope_theta = "),
        ({"num_hidden_layers": "27"}, r"num_hidden_layers = '27' is not a whole number from 1"),
        ({"num_hidden_layers": -1}, r"num_hidden_layers = -1"),
        ({"num_hidden_layers": 10**12}, r"num_hidden_layers = 1000000000000"),
        ({"num_hidden_layers": 4.0}, r"num_hidden_layers = 4\.0"),
        ({"num_hidden_layers": True}, r"num_hidden_layers = True"),
        ({"num_hidden_layers": None}, r"no num_hidden_layers"),
        ({"hidden_size": 0}, r"hidden_size = 0"),
        ({"hidden_size": [64]}, r"hidden_size = \[64\]"),
        ({"num_attention_heads": 3, "num_key_value_heads": 2}, "no multiple of num_key_value_heads"),
        ({"num_attention_heads": 3, "num_key_value_heads": 3}, "no multiple of num_attention_heads"),
        ({"head_dim": 15}, r"head_dim = 15 is odd"),
        ({"model_type": "glm4", "head_dim": 32, "partial_rotary_factor": 1.1}, "rotates 35 of a head's 32"),
        ({"model_type": "glm4", "head_dim": 32, "partial_rotary_factor": 0.1}, "rotates 3 of a head's 32"),
        ({**CONFIGS["step3p5"], "partial_rotary_factors": [2] * 5}, "rotates 64 of a head's 32"),
        ({**CONFIGS["step3p5"], "rope_theta": [None] * 5}, "no number for a layer"),
        ({**CONFIGS["step3p5"], "moe_num_experts": [8]}, r"moe_num_experts = \[8\]"),
        ({**CONFIGS["mimo_v2_flash"], "attention_value_scale": "x"}, "attention_value_scale = 'x'"),
        ({**CONFIGS["nemotron_h"], "hybrid_override_pattern": 1}, "hybrid_override_pattern = 1 is not text"),
        ({"model_type": 7}, r"model_type = 7 is not text"),
        ({"model_type": None}, "no model_type"),
        ({"rms_norm_eps": "1e-6"}, r"rms_norm_eps = '1e-6' is not a number above 0"),
        ({"rms_norm_eps": math.nan}, r"rms_norm_eps = nan"),
        ({"rope_theta": -5, "rope_parameters": None}, r"rope_theta = -5"),
        ({"rope_parameters": [1]}, r"rope_parameters = \[1\] is not an object"),
        ({"rope_parameters": {"rope_theta": "1e6"}}, r"rope_theta = '1e6'"),
        ({"rope_parameters": {"type": "yarn", "factor": "4"}}, r"factor = '4'"),
        ({"rope_parameters": {"type": "linear"}}, r"rope_parameters of type 'linear' has no factor"),
        ({"rope_scaling": {"rope_type": "yarn", **YARN}}, "contradict each other in rope_type"),
        ({"rope_scaling": {"type": "yarn", **YARN}}, "contradict each other in rope_type"),
        ({"tie_word_embeddings": "yes"}, r"tie_word_embeddings = 'yes' is not true or false"),
        ({"layer_types": ["full_attention"]}, "layer_types names 1 layers"),
        ({"layer_types": "full"}, r"layer_types = 'full' is not a list"),
        ({"quantization": {"bits": 4}}, r"group_size = None of quantization"),
        ({"quantization": {"group_size": 64, "bits": "4"}}, r"bits = '4' of quantization"),
        ({"quantization": {"group_size": 64, "bits": 4, "lm_head": {"bits": 7}}}, r"bits = 7 of lm_head"),
        ({"quantization": 4}, r"quantization = 4 is not an object"),
    ],
)
def test_a_key_that_cannot_be_is_named(change: dict[str, Any], reason: str) -> None:
    """Wrong kinds, wrong ranges and contradictions end with the file and the key, not with a traceback."""
    with pytest.raises(BadCheckpoint, match=rf"^config\.json: .*{reason}"):
        normalise_config({**make_config("llama"), **change}, "config.json")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "is not JSON"),
        (b"[]", "is not a JSON object"),
        (b"\xff\xfe{}", "is not JSON"),
        (b"null", "is not"),
    ],
)
def test_a_file_that_is_no_object_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    """A broken config.json has another error than one of an unserved model."""
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(BadCheckpoint, match=re.escape(str(tmp_path / "config.json")) + f" {reason}"):
        read_config(tmp_path)


def test_every_variant_of_the_tests_is_normal(tmp_path: Path) -> None:
    """A config in the normal form stays as it is."""
    for variant in VARIANTS:
        once = read_config(make_checkpoint(tmp_path / variant, variant))
        assert normalise(once) == once, variant
    for name, config in CONFIGS.items():
        assert normalise(normalise(config)) == normalise(config), name


ODD_VALUES: list[Any] = ["x", "", -1, 0, 1.5, 10**400, math.nan, math.inf, True, False, None]
ODD_VALUES += [[], [1], ["x"], [[]], {}, {"x": 1}]
ROPE_KEYS = ["rope_type", "type", "rope_theta", "factor", "original_max_position_embeddings", "beta_fast"]
ROPE_KEYS += ["mscale", "mscale_all_dim", "attention_factor", "truncate"]
ROPE_KEYS += ["low_freq_factor", "llama_4_scaling_beta", "partial_rotary_factor", "alpha"]


@pytest.mark.parametrize("model_type", FAMILIES)
def test_no_value_of_any_key_ends_in_a_traceback(model_type: str) -> None:
    """Any config is served, or refused with a sentence."""
    base = make_config(
        model_type, num_experts_per_tok=2, topk_method="greedy", layer_types=None, sliding_window=None
    )
    tiny = CONFIGS[model_type]
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, **YARN}
    packing = {"group_size": 64, "bits": 4, "mode": "affine", "lm_head": {"bits": 8}}
    for value in ODD_VALUES:
        changed: list[dict[str, Any]] = [
            base | {key: value} for key in (*base, "quantization_config", "compression_config", "a_factor")
        ]
        changed += [base | {"rope_parameters": yarn | {key: value}} for key in ROPE_KEYS]
        changed += [base | {"quantization": packing | {key: value}} for key in packing]
        changed += [{"model_type": "mistral3", "text_config": base | {key: value}} for key in base]
        changed += [tiny | {key: each} for key in tiny for each in (value, [value] * 5)]
        for config in changed:
            with contextlib.suppress(BadCheckpoint, UnsupportedModel):
                normalise_config(config, "config.json")


INVERSE_FREQUENCIES: dict[str, tuple[dict[str, Any], float]] = {
    "default": ({"rope_type": "default"}, 1.0),
    "linear": ({"rope_type": "linear", "factor": 4.0}, 1.0),
    "llama3": ({"rope_type": "llama3", **LLAMA3, "original_max_position_embeddings": 64}, 1.0),
    "yarn": (
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
        0.1 * math.log(4) + 1,
    ),
    "yarn-truncate": (
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "truncate": False},
        0.1 * math.log(4) + 1,
    ),
    "yarn-attention_factor": (
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "attention_factor": 0.9},
        0.9,
    ),
}
THETA = 500000.0


def inverse_frequencies(rope: dict[str, Any], num_values: int) -> Any:
    """What transformers 5.24 modeling_rope_utils.py computes, (num_values / 2,)."""
    plain = THETA ** (-np.arange(0, num_values, 2) / num_values)
    kind, factor = rope["rope_type"], rope.get("factor", 1.0)
    if kind in ("default", "linear"):
        return plain / factor
    original = rope["original_max_position_embeddings"]
    if kind == "llama3":
        low, high = (original / rope[key] for key in ("low_freq_factor", "high_freq_factor"))
        wavelengths = 2 * math.pi / plain
        smooth = (original / wavelengths - rope["low_freq_factor"]) / (
            rope["high_freq_factor"] - rope["low_freq_factor"]
        )
        between = (1 - smooth) * plain / factor + smooth * plain
        return np.where(wavelengths > low, plain / factor, np.where(wavelengths < high, plain, between))
    first, last = (
        num_values * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(THETA)) for turns in (32, 1)
    )
    if rope.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, num_values - 1)
    ramp = np.clip((np.arange(num_values // 2) - first) / max(last - first, 0.001), 0, 1)
    return plain / factor * ramp + plain * (1 - ramp)


ROTATING = [
    name
    for name, record in FAMILIES.items()
    if record.runs_as == name and name not in ("gemma4_text", "nemotron_h")
]


@pytest.mark.parametrize("model_type", ROTATING)
def test_a_stage_rotates_by_the_angles_of_the_config(tmp_path: Path, model_type: str) -> None:
    """Every kind of scaling that is served, in every type, against the formulas in NumPy."""
    folder = make_model_folder(tmp_path, CONFIGS[model_type])
    width = CONFIGS[model_type].get("rotary_dim")
    partial = {"partial_rotary_factor": CONFIGS[model_type].get("partial_rotary_factor", 1.0)}
    for name, (rope, factor) in INVERSE_FREQUENCIES.items():
        if name == "yarn-truncate" and model_type == "ministral3":
            continue  # refused
        edit_config(
            folder, "rope_theta", "rope_scaling", rope_parameters={**rope, "rope_theta": THETA, **partial}
        )
        read = read_config(folder)
        kinds = read.get("layer_types", [])
        layers = open_stage(folder, range(4), is_first=True, is_last=True).inner.layers
        number = next(i for i, layer in enumerate(layers) if "self_attn" in layer)
        if FAMILIES[model_type].local_theta:
            number = kinds.index("full_attention")
        module = layers[number].self_attn.rope
        if model_type in LATENT_TYPES:
            width = read["qk_rope_head_dim"]
        shares = read.get("partial_rotary_factors") or [partial["partial_rotary_factor"]] * 4
        num_values = width or int(read["head_dim"] * shares[number])
        is_traditional = model_type in ("cohere", "cohere2", "ernie4_5", "glm4", "helium", *LATENT_TYPES)
        check_angles(module, num_values, is_traditional, factor, inverse_frequencies(rope, num_values))


def check_angles(module: Any, num_values: int, is_traditional: bool, factor: float, frequencies: Any) -> None:
    """Check that a rotation turns unit vectors by position times frequency, and scales them."""
    pairs = np.zeros((num_values // 2, 2), np.float32)
    pairs[:, 0] = 1  # every pair is the unit vector
    x = pairs.reshape(-1) if is_traditional else pairs.T.reshape(-1)
    for position in (0, 1, 63, 300):
        rotated = np.array(module(mx.array(x)[None, None, None], offset=position))[0, 0, 0]
        turned = rotated.reshape(-1, 2) if is_traditional else rotated.reshape(2, -1).T
        angles = position * frequencies
        expected = factor * np.stack([np.cos(angles), np.sin(angles)], axis=-1)
        assert np.abs(turned - expected).max() < 2e-4, position
