"""The type and bounds of each known key of a config.json. Pure data and one check."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MAX_LAYERS = 10_000
MAX_INTEGER = 2**31 - 1
MAX_NUMBER = 1e30
# Whole numbers from 1 or from 0. null is allowed everywhere and means that the key is absent.
_FROM_1 = (
    "hidden_size vocab_size num_hidden_layers num_attention_heads num_key_value_heads intermediate_size "
    "head_dim max_position_embeddings original_max_position_embeddings kv_lora_rank q_lora_rank "
    "qk_nope_head_dim qk_rope_head_dim v_head_dim moe_intermediate_size moe_layer_freq n_group topk_group "
    "decoder_sparse_step rotary_dim no_rope_layer_interval index_head_dim index_n_heads index_topk "
    "global_head_dim num_global_key_value_heads top_k_experts num_attention_groups moe_top_k "
    "share_expert_dim swa_head_dim swa_v_head_dim swa_num_attention_heads swa_num_key_value_heads"
)
_FROM_0 = (
    "sliding_window max_window_layers num_experts num_local_experts n_routed_experts n_shared_experts "
    "first_k_dense_replace num_nextn_predict_layers shared_intermediate_size num_experts_per_tok "
    "shared_expert_intermediate_size moe_num_experts num_shared_experts sliding_window_size"
)
_HYBRID_INTEGERS = (
    "conv_L_cache block_dim block_ff_dim block_multiple_of full_attention_interval linear_num_value_heads "
    "linear_num_key_heads linear_key_head_dim linear_value_head_dim linear_conv_kernel_dim mamba_num_heads "
    "mamba_head_dim ssm_state_size conv_kernel n_groups mamba_n_heads mamba_d_head mamba_d_state "
    "mamba_d_conv mamba_n_groups mamba_d_ssm mamba_expand moe_latent_size attention_head_dim "
    "moe_shared_expert_intermediate_size"
)
_HYBRID_NUMBERS = (
    "block_ffn_dim_multiplier attention_in_multiplier attention_out_multiplier key_multiplier "
    "lm_head_multiplier ssm_in_multiplier ssm_out_multiplier"
)
_HYBRID_SWITCHES = (
    "conv_bias use_expert_bias block_auto_adjust_ff_dim mamba_proj_bias use_conv_bias mamba_conv_bias "
    "mamba_rms_norm mamba_norm_before_gate"
)
_INTEGERS = dict.fromkeys(_FROM_1.split(), 1) | dict.fromkeys(_FROM_0.split(), 0)
_INTEGERS |= dict.fromkeys(_HYBRID_INTEGERS.split(), 1) | {"num_dense_layers": 0}
_NUMBERS = (
    "rms_norm_eps norm_eps layer_norm_eps rope_theta routed_scaling_factor partial_rotary_factor logit_scale "
    "query_pre_attn_scalar rope_local_base_freq local_rope_theta local_partial_rotary_factor "
    "attn_logit_softcapping final_logit_softcapping "
    "embedding_multiplier attention_multiplier residual_multiplier logits_scaling attention_value_scale "
    "moe_router_scaling_factor moe_routed_scaling_factor route_scale output_multiplier qk_scale_factor "
    "post_norm_eps layer_norm_epsilon layernorm_epsilon"
)
_SWITCHES = (
    "tie_word_embeddings attention_bias attention_out_bias mlp_bias use_bias use_qkv_bias layer_norm_bias "
    "norm_topk_prob use_sliding_window rope_traditional use_qk_norm qk_layernorm use_parallel_residual "
    "indexer_rope_interleave"
)
_TEXTS = ("model_type", "topk_method", "hidden_act", "scoring_func", "model_file", "index_topk_pattern")
_LISTS = ("time_step_limit", "mlp_multipliers", "ssm_multipliers")
_OBJECTS = (
    "rope_scaling",
    "rope_parameters",
    "quantization",
    "quantization_config",
    "compression_config",
    "text_config",
)


class BadValue(ValueError):
    """A key of a config is missing, of the wrong type, or contradicts another; the message names it."""


def check_types(config: Mapping[str, Any]) -> None:
    """Check every known key's value.

    Raises:
        BadValue: names the key, its value and the allowed values.
    """
    for key, least in _INTEGERS.items():
        if key == "moe_layer_freq" and isinstance(config.get(key), list):  # of layers: layer_config.py
            continue
        check_integer(key, config.get(key), least, MAX_LAYERS if key == "num_hidden_layers" else MAX_INTEGER)
    for key in (*_NUMBERS.split(), *_HYBRID_NUMBERS.split()):
        if key != "rope_theta" or not isinstance(
            config.get(key), list
        ):  # step_config.py, else rope_config.py
            check_number(key, config.get(key))
    for key in (*_SWITCHES.split(), *_HYBRID_SWITCHES.split()):
        _check(config, key, bool, "true or false")
    for key in _TEXTS:
        _check(config, key, str, "text")
    for key in _OBJECTS:
        _check(config, key, dict, "an object")
    for key in _LISTS:
        _check(config, key, list, "a list")
    _check_list(config, "full_attn_idxs", int, "numbers of layers")
    for key in ("layer_types", "layers_block_type", "mlp_layer_types", "indexer_types"):
        _check_list(config, key, str, "names of kinds of layers")
    _check_list(config, "mlp_only_layers", int, "numbers of layers")
    _check_list(config, "no_rope_layers", int, "0 and 1")


def check_integer(key: str, value: Any, least: int, most: int = MAX_INTEGER) -> None:
    """Check a whole number; None is absent. Raises: BadValue."""
    if value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise BadValue(f"{key} = {value!r} is not a whole number from {least} to {most}")


def check_number(key: str, value: Any) -> None:
    """Check a number above 0; None is absent. Raises: BadValue."""
    if value is None:
        return
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 < value <= MAX_NUMBER:
        raise BadValue(f"{key} = {value!r} is not a number above 0")


def check_share(key: str, share: float, num_values: int) -> None:
    """Check that a share of a head's values can be rotated, pair by pair. Raises: BadValue."""
    num_rotated = int(num_values * share)
    if not 2 <= num_rotated <= num_values or num_rotated % 2:
        raise BadValue(
            f"{key} = {share} rotates {num_rotated} of a head's {num_values} values, not pairs of them"
        )


def _check(config: Mapping[str, Any], key: str, kind: type, what: str) -> None:
    value = config.get(key)
    if value is not None and not isinstance(value, kind):
        raise BadValue(f"{key} = {value!r} is not {what}")


def _check_list(config: Mapping[str, Any], key: str, kind: type, what: str) -> None:
    value = config.get(key)
    is_good = isinstance(value, list) and all(type(entry) is kind for entry in value)
    if value is not None and not is_good:
        raise BadValue(f"{key} = {value!r} is not a list of {what}")
