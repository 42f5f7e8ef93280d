"""What is known of a model type: the keys of config.json that it follows, and those that it ignores.

A key is honoured (the model follows it), neutral (the model ignores it, but these values match its
behaviour), or harmless (it changes no numbers). model_config.py refuses any other key whose name suggests
that it changes numbers. families.py has the records. Knows nothing of MLX, files or stages.
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
    "hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads vocab_size "
    "rms_norm_eps rope_theta rope_scaling rope_parameters max_position_embeddings "
    "original_max_position_embeddings tie_word_embeddings quantization layer_types sliding_window "
    "use_sliding_window max_window_layers partial_rotary_factor"
)
_NEUTRAL: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "attention_bias": (False,),
        "mlp_bias": (False,),
        "hidden_act": ("silu", "swish"),
        "hidden_activation": ("silu", "swish"),
        "rope_interleaved": (False,),
        "rope_traditional": (False,),
        "position_embedding_type": ("rope", "rotary"),
        "scoring_func": ("softmax",),
        "is_causal": (True,),
        "num_experts": (0,),
        "num_local_experts": (0,),
        "n_routed_experts": (0,),
        "moe_num_experts": (0,),
    }
)
# Keys that look as if they changed numbers but are for training, for sampling or for other programs.
HARMLESS = _keys(
    "temperature top_k add_cross_attention "
    "cross_attention_hidden_size use_memory_efficient_attention model_parallel tensor_parallel_size "
    "expert_parallel_size gradient_checkpointing"
)

ROPE_TYPES = ("default", "linear", "llama3", "yarn")
# The names that classes have for the number of routed experts of a layer.
EXPERT_COUNTS = ("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts")


Window = Literal["never", "always", "switched", "beyond", "listed"]
KVKind = Literal["full", "latent", "state"]


@dataclass(frozen=True)
class Family:
    """A model type.

    Args:
        runs_as: the type whose mlx-lm class runs it.
        honoured: keys that the class follows, beyond those of every model.
        window: when sliding_window is meant: never, always, in the layers beyond max_window_layers, there
            where use_sliding_window is set, or in the layers that layer_types lists.
        serves_windows: whether windows that are shorter than the context are served.
        masks_windows: whether the class makes masks for layers with windows; else each layer makes its own.
        defaults: what an absent key means.
        neutral: key -> values that match the behaviour of the class; of a list, each entry's.
        rope_keys: keys of rope_parameters that the class follows, beyond those of every model.
        local_theta: where rotations are never scaled in sliding layers, the key of their rope_theta:
            "rope_theta" if it is that of the others. None: all layers rotate alike.
        spellings: a key that the class reads -> the usual key of the same value, which others read.
        packings: names that quantization_config has for weights that the class takes as MLX's mxfp4.
        embedding_factor: the attribute of mlx-lm's inner model that multiplies embeddings, dotted if it lies
            deeper.
        kv: what layers cache: of a token keys and values of all KV heads, or one latent; or some layers
            that, and others one state a row (state_families.py).
    """

    runs_as: str
    honoured: frozenset[str]
    window: Window
    defaults: Mapping[str, Any]
    neutral: Mapping[str, tuple[Any, ...]]
    serves_windows: bool = False
    masks_windows: bool = False
    rope_keys: frozenset[str] = frozenset()
    local_theta: str | None = None
    spellings: Mapping[str, str] = field(default_factory=dict)
    packings: tuple[str, ...] = ()
    embedding_factor: str = ""
    kv: KVKind = "full"

    def neutral_values(self, key: str) -> tuple[Any, ...] | None:
        """Return the values of a key that change nothing; None if the key is not neutral."""
        return None if key in self.honoured else self.neutral.get(key, _NEUTRAL.get(key))

    def is_known(self, key: str) -> bool:
        """Whether the key is followed or changes no numbers."""
        own = (self.honoured, self.spellings, (self.local_theta,))
        return any(key in keys for keys in (_HONOURED, HARMLESS, *own))

    @property
    def expert_count(self) -> str | None:
        """The class's name for the number of routed experts; None: it has none."""
        return next((key for key in EXPERT_COUNTS if key in self.honoured), None)


def make_family(
    runs_as: str,
    honoured: str = "",
    neutral: Mapping[str, tuple[Any, ...]] | None = None,
    *,
    window: Window = "never",
    rope_keys: str = "",
    kv: KVKind = "full",
    serves_windows: bool = False,
    masks_windows: bool = False,
    local_theta: str | None = None,
    spellings: Mapping[str, str] | None = None,
    packings: tuple[str, ...] = (),
    embedding_factor: str = "",
    **defaults: Any,
) -> Family:
    """Make a record; `defaults` on top of the commonest ones."""
    defaults = {"rms_norm_eps": 1e-6, "rope_theta": 10000.0, **defaults}
    return Family(
        runs_as=runs_as,
        honoured=_keys(honoured),
        window=window,
        defaults=defaults,
        neutral=neutral or {},
        rope_keys=_keys(rope_keys),
        kv=kv,
        serves_windows=serves_windows,
        masks_windows=masks_windows,
        local_theta=local_theta,
        spellings=spellings or {},
        packings=packings,
        embedding_factor=embedding_factor,
    )


def count_experts(config: Mapping[str, Any]) -> int:
    """Return the number of routed experts of a layer with experts; 0: the model has none."""
    return next((int(config[key]) for key in EXPERT_COUNTS if config.get(key)), 0)


# Parts of records that several types share.
UNTIED = {"tie_word_embeddings": (False,)}
TIED = {"tie_word_embeddings": (True,)}
MULTIPLIERS = "embedding_multiplier attention_multiplier residual_multiplier logits_scaling"
UNITY: dict[str, Any] = dict.fromkeys(MULTIPLIERS.split(), 1.0)
QWEN: dict[str, Any] = {"max_position_embeddings": 32768, "num_key_value_heads": 32, "max_window_layers": 28}
# Rotations by position in an image: of text, all sections have the same position.
SECTIONS = "mrope_section mrope_interleaved"
