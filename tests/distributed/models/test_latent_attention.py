"""Latent attention gives the same whichever way it is worked out."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from distributed.backends.cpu.attention import softmax_in_place
from distributed.backends.cpu.latents import place_latents
from distributed.backends.kv_cache import KVTable
from distributed.models import latent_attention
from distributed.models.indexed_attention import IndexedAttention
from distributed.models.latent_attention import LatentAttention
from distributed.planning.capacities import NUM_SCORE_ARRAYS
from distributed.planning.step import StageStep
from prompts.mlx_lm_import import import_mlx_lm
from tests.fakes.checkpoints import VARIANTS

TOLERANCE = 1e-5
NUM_ROWS, NUM_TOKENS, NUM_SEEN = 2, 9, 21


def make_attention() -> tuple[LatentAttention, Any]:
    config = {**VARIANTS["deepseek_v2"][0], "hidden_size": 64, "num_attention_heads": 4}
    mx.random.seed(3)
    args = import_mlx_lm("models.deepseek_v2").ModelArgs.from_dict(config)
    return LatentAttention(args, nn.RoPE(args.qk_rope_head_dim, traditional=True)), args


def make_mask(kind: str) -> Any:
    """What the cache says of each kind of step; a row of the last is padding and sees nothing."""
    if kind == "ragged":
        rng = np.random.default_rng(5)
        mask = rng.random((NUM_ROWS, 1, NUM_TOKENS, NUM_SEEN)) < 0.6
        mask[..., 0] = True
        mask[1, 0, -1] = False
        return mx.array(mask)
    return None if kind == "all" else kind


def has_latent(path: str, module: nn.Module) -> bool:
    return path in ("embed_q", "unembed_out")


@pytest.mark.parametrize("is_quantized", [False, True])
@pytest.mark.parametrize("kind", ["all", "causal", "ragged"])
def test_both_ways_give_the_same(kind: str, is_quantized: bool) -> None:
    """Absorbed and expanded, by MLX and by NumPy (expanded with plain weights only)."""
    attention, args = make_attention()
    if is_quantized:
        nn.quantize(attention, group_size=32, bits=8, class_predicate=has_latent)
        assert type(attention.embed_q) is import_mlx_lm("models.mla").QuantizedMultiLinear
    shapes = {
        "q_nope": (NUM_ROWS, args.num_attention_heads, NUM_TOKENS, args.qk_nope_head_dim),
        "q_rope": (NUM_ROWS, args.num_attention_heads, NUM_TOKENS, args.qk_rope_head_dim),
        "latent": (NUM_ROWS, 1, NUM_SEEN, args.kv_lora_rank),
        "k_rope": (NUM_ROWS, 1, NUM_SEEN, args.qk_rope_head_dim),
    }
    q_nope, q_rope, latent, k_rope = (mx.random.normal(shape) for shape in shapes.values())
    mask = make_mask(kind)
    by_mlx = np.array(attention._attend_expanded(q_nope, q_rope, latent, k_rope, mask))
    absorbed_by_mlx = np.array(attention._attend_absorbed(q_nope, q_rope, latent, k_rope, mask))
    place_latents(attention, mx.float32)
    assert attention.softmax is softmax_in_place
    assert (attention.attend_latents is None) == is_quantized
    by_numpy = np.array(attention._attend_expanded(q_nope, q_rope, latent, k_rope, mask))
    absorbed = np.array(attention._attend_absorbed(q_nope, q_rope, latent, k_rope, mask))
    seen = np.ones(absorbed.shape, bool)
    if kind == "ragged":
        seen[1, :, -1] = False
        assert np.isfinite(by_numpy).all()
        assert np.isfinite(by_mlx).all()
    np.testing.assert_allclose(by_numpy[seen], absorbed[seen], atol=TOLERANCE)
    np.testing.assert_allclose(absorbed_by_mlx[seen], absorbed[seen], atol=TOLERANCE)
    np.testing.assert_allclose(by_mlx[seen], absorbed[seen], atol=TOLERANCE)


def test_a_chunk_is_expanded_from_where_that_is_less_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSeek-V2-Lite: 512 wide latents, keys and values of 128 each, break even at 171 tokens."""
    assert 170 < latent_attention._break_even(512, 256) < 171
    assert latent_attention._break_even(64, 256) == float("inf")
    attention, _ = make_attention()
    asked: list[str] = []
    for name in ("_attend_absorbed", "_attend_expanded"):
        real = getattr(LatentAttention, name)

        def note(self: LatentAttention, *parts: Any, name: str = name, real: Any = real) -> Any:
            asked.append(name)
            return real(self, *parts)

        monkeypatch.setattr(LatentAttention, name, note)
    most = int(attention.max_absorbed_tokens)
    for num_tokens in (1, most, most + 1):
        attention(mx.random.normal((1, num_tokens, 64)), "causal")
    assert asked == ["_attend_absorbed", "_attend_absorbed", "_attend_expanded"]


@pytest.mark.parametrize("is_indexed", [False, True])
@pytest.mark.parametrize(("num_tokens", "num_seen"), [(512, 4096), (192, 10_240), (64, 32_768)])
def test_a_chunk_takes_no_more_memory_than_the_plan_counts(
    num_tokens: int, num_seen: int, is_indexed: bool
) -> None:
    """Of the default model's widths, at both ways' longest contexts; measured where MLX runs here.

    An indexer has half as many heads as attention, as published.
    """
    config = {"hidden_size": 64, "num_attention_heads": 4, "kv_lora_rank": 512, "q_lora_rank": None}
    heads = {"qk_rope_head_dim": 64, "v_head_dim": 128, "qk_nope_head_dim": 128}
    rope, plain = nn.RoPE(64, traditional=True), {"rope_scaling": {"factor": 1.0}, **config, **heads}
    if is_indexed:
        plain |= {"q_lora_rank": 128, "index_n_heads": 2, "index_head_dim": 128, "index_topk": 2048}
        args = import_mlx_lm("models.deepseek_v32").ModelArgs.from_dict(plain)
        attention: LatentAttention = IndexedAttention(nn.RoPE(64), args, rope, 1e-6)
    else:
        attention = LatentAttention(import_mlx_lm("models.deepseek_v2").ModelArgs.from_dict(plain), rope)
    attention.set_dtype(mx.bfloat16)
    step = StageStep(0, (0,), (num_seen - num_tokens,), (num_tokens,), num_tokens)
    (cache,) = KVTable(1).begin(step)
    widths = (512, 64 + 128 * is_indexed)
    cache.make_room((1, num_seen), *(mx.zeros((1, 1, 1, width), mx.bfloat16) for width in widths))
    x = mx.zeros((1, num_tokens, 64), mx.bfloat16)
    mx.eval(x, attention.parameters(), cache.keys, cache.values)
    mx.reset_peak_memory()
    held = mx.get_active_memory()
    mx.eval(attention(x, cache.make_mask(num_tokens), cache))
    # Published indexers stand beside 64 or 128 heads, which leave room for what their choice takes.
    num_bytes = NUM_SCORE_ARRAYS * 4 * 2 + 16 * is_indexed
    assert mx.get_peak_memory() - held < num_tokens * num_seen * num_bytes
