"""The served model types as data: the keys of config.json that each follows, and those that it ignores.

One record a type. A key is honoured (the model follows it), neutral (the model ignores it, but these values
match its behaviour), or harmless (it changes no numbers). model_config.py refuses any other key whose name
suggests that it changes numbers. Knows nothing of MLX, files or stages.

The defaults are those of transformers' config classes (transformers 5.24), which differ from some of mlx-lm's
classes; tests compare them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal


def _keys(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Keys that every model's class follows, or that model_config.py and rope_config.py handle.
_HONOURED = _keys(
    "hidden_size intermediate_size num_hidden_layers num_attention_heads vocab_size rms_norm_eps rope_theta "
    "rope_scaling rope_parameters max_position_embeddings original_max_position_embeddings "
    "tie_word_embeddings quantization layer_types sliding_window use_sliding_window max_window_layers "
    "partial_rotary_factor"
)
_NEUTRAL: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "hidden_act": ("silu", "swish"),
        "hidden_activation": ("silu", "swish"),
        "rope_interleaved": (False,),
        "position_embedding_type": ("rope", "rotary"),
        "scoring_func": ("softmax",),
        "is_causal": (True,),
        "num_experts": (0,),
        "num_local_experts": (0,),
        "n_routed_experts": (0,),
    }
)
# Keys that look as if they changed numbers but are for training, for sampling or for other programs.
HARMLESS = _keys(
    "temperature top_k add_cross_attention "
    "cross_attention_hidden_size use_memory_efficient_attention model_parallel tensor_parallel_size "
    "expert_parallel_size gradient_checkpointing"
)

ROPE_TYPES = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True)
class Family:
    """A model type.

    Args:
        runs_as: the type whose mlx-lm class runs it.
        honoured: keys that the class follows, beyond those of every model.
        neutral: key -> values that match the behaviour of the class.
        defaults: what an absent key means.
        window: when sliding_window is meant: never, always, or where use_sliding_window is set.
    """

    runs_as: str
    honoured: frozenset[str]
    window: Literal["never", "always", "switched"]
    defaults: Mapping[str, Any]
    neutral: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    rope_keys: frozenset[str] = frozenset()

    def neutral_values(self, key: str) -> tuple[Any, ...] | None:
        """Return the values of a key that change nothing; None if the key is not neutral."""
        return None if key in self.honoured else self.neutral.get(key, _NEUTRAL.get(key))

    def is_known(self, key: str) -> bool:
        """Whether the key is followed or changes no numbers."""
        return key in _HONOURED or key in self.honoured or key in HARMLESS


_LLAMA = _keys("num_key_value_heads head_dim attention_bias mlp_bias rope_traditional")
_NO_BIASES = {"attention_bias": (False,), "mlp_bias": (False,), "rope_traditional": (False,)}
_QWEN_EXPERTS = _keys(
    "num_experts num_experts_per_tok decoder_sparse_step mlp_only_layers moe_intermediate_size norm_topk_prob"
)
_DEEPSEEK = _keys(
    "num_key_value_heads head_dim qk_head_dim attention_bias kv_lora_rank q_lora_rank qk_nope_head_dim "
    "qk_rope_head_dim v_head_dim n_routed_experts n_shared_experts num_experts_per_tok moe_intermediate_size "
    "first_k_dense_replace moe_layer_freq topk_method n_group topk_group routed_scaling_factor"
)
_DEFAULTS = {"rms_norm_eps": 1e-6, "rope_theta": 10000.0}
_QWEN_DEFAULTS = {
    **_DEFAULTS,
    "max_position_embeddings": 32768,
    "num_key_value_heads": 32,
    "max_window_layers": 28,
}

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "deepseek_v2": Family(
            "deepseek_v2",
            _DEEPSEEK,
            "never",
            {
                **_DEFAULTS,
                "max_position_embeddings": 2048,
                "routed_scaling_factor": 1.0,
                "first_k_dense_replace": 0,
                "topk_method": "greedy",
            },
            {
                "mlp_bias": (False,),
                "norm_topk_prob": (False,),
                "rope_interleave": (True,),
                "tie_word_embeddings": (False,),
            },
        ),
        "llama": Family(
            "llama",
            _LLAMA,
            "never",
            {**_DEFAULTS, "max_position_embeddings": 2048},
        ),
        "ministral3": Family(
            "ministral3",
            _keys("num_key_value_heads head_dim"),
            "always",
            {
                **_DEFAULTS,
                "rms_norm_eps": 1e-5,
                "max_position_embeddings": 262144,
                "num_key_value_heads": 8,
            },
            _NO_BIASES,
            rope_keys=_keys("llama_4_scaling_beta"),
        ),
        "mistral": Family(
            "llama",
            _keys("num_key_value_heads head_dim"),
            "always",
            {
                **_DEFAULTS,
                "max_position_embeddings": 131072,
                "num_key_value_heads": 8,
                "sliding_window": 4096,
            },
            _NO_BIASES,
        ),
        "qwen2": Family(
            "qwen2",
            _keys("num_key_value_heads rope_traditional"),
            "switched",
            _QWEN_DEFAULTS,
            {"attention_bias": (True,), "mlp_bias": (False,)},
        ),
        "qwen3": Family(
            "qwen3",
            _keys("num_key_value_heads head_dim"),
            "switched",
            {**_QWEN_DEFAULTS, "head_dim": 128},
            _NO_BIASES,
        ),
        "qwen3_moe": Family(
            "qwen3_moe",
            _QWEN_EXPERTS | _keys("num_key_value_heads head_dim"),
            "switched",
            {
                **_QWEN_DEFAULTS,
                "num_key_value_heads": 4,
                "num_experts": 128,
                "num_experts_per_tok": 8,
                "decoder_sparse_step": 1,
                "mlp_only_layers": [],
                "moe_intermediate_size": 768,
                "norm_topk_prob": False,
                "max_window_layers": 0,
            },
            _NO_BIASES,
        ),
    }
)
# Multimodal models whose text_config is of a served type; they are served with text only.
WRAPPERS = ("mistral3",)
SERVED_TYPES = tuple(sorted([*FAMILIES, *WRAPPERS]))
