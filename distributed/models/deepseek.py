"""DeepSeek from V2 on and models built like it: mlx-lm's classes with attention that caches latents.

kv_b_proj (H * (nope + v), rank) is split by rows per head, packed or not: groups lie along rank, so nothing
is requantized. The rest of the model is mlx-lm's own.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import mlx.core as mx

from distributed.models.general import GeneralProvider, make_rope
from distributed.models.indexed_attention import IndexedAttention
from distributed.models.latent_attention import LatentAttention
from distributed.models.weights import Weights
from distributed.planning.families.served import FAMILIES
from prompts.mlx_lm_import import import_mlx_lm

_KV_B = ".self_attn.kv_b_proj."
_TABLE = ".rotary_emb.inv_freq"
_FIRST_EXPERT = ".experts.0."


class LatentProvider(GeneralProvider):
    """mlx-lm's model with our latent attention in each layer."""

    def build(self, config: dict[str, Any]) -> Any:
        """Build mlx-lm's model, lazily, with our attention, which knows more scalings than yarn."""
        module = import_mlx_lm(f"models.{config['model_type']}")
        model = module.Model(module.ModelArgs.from_dict({**config, "rope_scaling": {"factor": 1.0}}))
        args = module.ModelArgs.from_dict(config)
        rope = make_rope(config, args.qk_rope_head_dim, is_traditional=True)
        # mlx_lm 0.32.2 and vLLM; transformers 5.24 takes 1e-6 for all
        eps = args.rms_norm_eps if config["model_type"] == "glm4_moe_lite" else 1e-6
        attention: Callable[..., LatentAttention] = LatentAttention
        if "index_topk" in FAMILIES[config["model_type"]].honoured:
            is_traditional = args.indexer_rope_interleave
            indexer_rope = make_rope(config, args.qk_rope_head_dim, is_traditional=is_traditional)
            attention = partial(IndexedAttention, indexer_rope)
        for layer in model.model.layers:
            layer.self_attn = attention(args, rope, eps)
        return model

    def adapt(self, model: Any, weights: Weights, config: dict[str, Any]) -> Weights:
        """Split kv_b_proj (packed weight, scales and biases alike) into the absorbed halves of each head.

        mlx-lm's own conversions hold the halves already, that of keys transposed. What its `sanitize` does
        beyond that is done here: it packs the halves anew, and deepseek_v3's drops layer 61 of any model.
        """
        num_heads, nope = config["num_attention_heads"], config["qk_nope_head_dim"]
        adapted: Weights = {}
        for name, array in weights.items():
            if _KV_B not in name:
                adapted[name] = array
                continue
            layer, leaf = name.split(_KV_B)
            heads = array.reshape(num_heads, -1, array.shape[-1])
            adapted[f"{layer}.self_attn.embed_q.{leaf}"] = mx.contiguous(heads[:, :nope])
            adapted[f"{layer}.self_attn.unembed_out.{leaf}"] = mx.contiguous(heads[:, nope:])
        for number, layer in enumerate(model.model.layers):
            if f"model.layers.{number}.self_attn.embed_q.weight" in weights:
                layer.self_attn.take_transposed_keys()
        return _stack_experts(adapted, config["n_routed_experts"])


def _stack_experts(weights: Weights, num_experts: int | None) -> Weights:
    """Join the tensors of a layer's experts, as mlx-lm's classes do, and leave out tables of angles."""
    stacked = {name: array for name, array in weights.items() if not name.endswith(_TABLE)}
    for first in [name for name in stacked if _FIRST_EXPERT in name]:
        names = [first.replace(_FIRST_EXPERT, f".experts.{number}.") for number in range(num_experts or 0)]
        if all(name in stacked for name in names):
            arrays = [stacked.pop(name) for name in names]
            stacked[first.replace(_FIRST_EXPERT, ".switch_mlp.")] = mx.stack(arrays)
    return stacked
