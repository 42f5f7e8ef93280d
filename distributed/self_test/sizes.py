"""How much the self-test does: full where weights stay as they are stored, small elsewhere, tiny in tests.

The model is a deepseek_v2, the family of the default model, with as many layers in the full size. Knows no
MLX.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True)
class Size:
    """Amounts of one size; `model` is of config.json, `bits` None leaves the weights plain."""

    model: Mapping[str, Any]
    dtype: str
    bits: int | None
    num_steps: int  # whose median counts
    num_grown: int  # steps of the memory line
    num_tokens: int  # of an answer
    parity_tokens: int
    num_laps: int
    chunks: tuple[int, ...]
    pauses_s: tuple[float, ...]
    ring_wait_s: float
    long_tokens: int  # context of the latents line
    share_s: float


_MODEL = {"model_type": "deepseek_v2", "first_k_dense_replace": 1, "n_shared_experts": 2}
_FULL_MODEL = {
    **_MODEL,
    "vocab_size": 32_000,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "moe_intermediate_size": 704,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "n_routed_experts": 8,
    "num_experts_per_tok": 6,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
}
_SMALL_MODEL = {
    **_MODEL,
    "vocab_size": 4096,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "moe_intermediate_size": 256,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "kv_lora_rank": 128,
    "qk_rope_head_dim": 32,
    "qk_nope_head_dim": 64,
    "v_head_dim": 64,
}
_CHUNKS, _PAUSES_S = (128, 512), (0.2, 1.0, 3.0)
SIZES: Mapping[str, Size] = MappingProxyType(
    {
        "full": Size(_FULL_MODEL, "bfloat16", 8, 50, 500, 256, 32, 500, _CHUNKS, _PAUSES_S, 12.0, 4096, 5.0),
        "small": Size(
            _SMALL_MODEL, "float32", None, 20, 500, 64, 24, 200, _CHUNKS, _PAUSES_S, 2.0, 1024, 1.0
        ),
        "tiny": Size({}, "float32", None, 3, 12, 8, 6, 10, (16,), (0.01,), 0.05, 64, 0.1),
    }
)
