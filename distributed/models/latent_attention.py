"""Attention with the latent in the KV cache: kv_lora_rank + rope head values a token and layer.

mlx-lm's own deepseek_v2 expands every token's latent to full keys and values before it caches them (8.9 times
more for V2-Lite). Here the two halves of kv_b_proj are absorbed instead (DeepSeek-V2 paper, section 2.1.3;
mlx_lm 0.32.2 models/deepseek_v3.py): with latent c, q_nope . (W_k c) = (W_k^T q_nope) . c, and sum p (W_v c)
= W_v sum p c. So all heads share one key, the latent, which is also the value; the heads are folded into the
rows of one product. For a chunk of many tokens that is more work than to make keys and values of the latents
for it: the latent is wider than a head.
"""

import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from prompts.mlx_lm_import import import_mlx_lm

mla = import_mlx_lm("models.mla")
rope_utils = import_mlx_lm("models.rope_utils")

Softmax = Callable[[mx.array], mx.array]  # over the last axis
Queries = tuple[mx.array, mx.array]  # plain and rotated


class LatentAttention(nn.Module):
    """Multi-head latent attention; caches (latent, rotated key), both (B, 1, S, _).

    Letters: B rows, T new tokens, S cached tokens, H heads, R = kv_lora_rank.
    """

    # A backend may put others in their place. Attention takes queries (plain and rotated, scaled), what is
    # cached (latents and rotated keys), the weights of keys and of values, and the mask.
    softmax: Softmax
    attend_latents: Callable[..., mx.array] | None

    def __init__(self, args: Any, rope: nn.Module, eps: float = 1e-6) -> None:
        super().__init__()
        self.num_heads = args.num_attention_heads
        self.rank, self.rope_dim = args.kv_lora_rank, args.qk_rope_head_dim
        self.nope_dim = args.qk_nope_head_dim
        q_dim = self.nope_dim + self.rope_dim
        if args.q_lora_rank is None:
            self.q_proj = nn.Linear(args.hidden_size, self.num_heads * q_dim, bias=False)
        else:
            self.q_a_proj = nn.Linear(args.hidden_size, args.q_lora_rank, bias=args.attention_bias)
            self.q_a_layernorm = nn.RMSNorm(args.q_lora_rank, eps=eps)
            self.q_b_proj = nn.Linear(args.q_lora_rank, self.num_heads * q_dim, bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(
            args.hidden_size, self.rank + self.rope_dim, bias=args.attention_bias
        )
        self.kv_a_layernorm = nn.RMSNorm(self.rank, eps=eps)
        self.embed_q = mla.MultiLinear(self.rank, self.nope_dim, self.num_heads)
        self.has_transposed_keys = False
        self.unembed_out = mla.MultiLinear(self.rank, args.v_head_dim, self.num_heads)
        self.o_proj = nn.Linear(self.num_heads * args.v_head_dim, args.hidden_size, bias=args.attention_bias)
        self.max_absorbed_tokens = _break_even(self.rank, self.nope_dim + args.v_head_dim)
        self.scale = rope_utils.apply_yarn_mscale(q_dim**-0.5, args.rope_scaling)
        self.rope = rope
        self.softmax, self.attend_latents = _softmax, None

    def take_transposed_keys(self) -> None:
        """Have the half of keys as mlx-lm's conversions store it."""
        self.embed_q = mla.MultiLinear(self.nope_dim, self.rank, self.num_heads)
        self.has_transposed_keys = True

    def __call__(self, x: mx.array, mask: Any = None, cache: Any = None) -> mx.array:
        """Attend from x (B, T, D) to the cache and to x itself.

        Args:
            mask: None (all may be seen), "causal", or bool (B, 1, T, S) where True may be seen.
        """
        offset = cache.offset if cache is not None else 0
        queries, latent, k_rope = self._project(x, self._asking(x), offset)
        if cache is not None:
            latent, k_rope = cache.update_and_fetch(latent, k_rope)
        return self._attend(queries, latent, k_rope, mask)

    def _asking(self, x: mx.array) -> mx.array:
        """Return what queries are made of."""
        return self.q_a_layernorm(self.q_a_proj(x)) if "q_a_proj" in self else x

    def _project(self, x: mx.array, asking: mx.array, offset: Any) -> tuple[Queries, mx.array, mx.array]:
        """Return queries (B, H, T, _), latents (B, 1, T, R) and rotated keys (B, 1, T, rope)."""
        B, T, _ = x.shape
        q = self.q_b_proj(asking) if "q_a_proj" in self else self.q_proj(asking)
        q = q.reshape(B, T, self.num_heads, -1).transpose(0, 2, 1, 3)
        q_nope, q_rope = mx.split(q, [self.nope_dim], axis=-1)
        latent, k_rope = mx.split(self.kv_a_proj_with_mqa(x), [self.rank], axis=-1)
        latent = self.kv_a_layernorm(latent)[:, None]
        return (q_nope, self.rope(q_rope, offset)), latent, self.rope(k_rope[:, None], offset)

    def _attend(self, queries: Queries, latent: mx.array, k_rope: mx.array, mask: Any) -> mx.array:
        B, _, T, _ = queries[0].shape
        attend = self._attend_expanded if self.max_absorbed_tokens < T else self._attend_absorbed
        out = attend(*queries, latent, k_rope, mask)  # (B, H, T, v)
        return self.o_proj(out.transpose(0, 2, 1, 3).reshape(B, T, -1))

    def _attend_absorbed(
        self, q_nope: mx.array, q_rope: mx.array, latent: mx.array, k_rope: mx.array, mask: Any
    ) -> mx.array:
        """Attend to the latents themselves."""
        B, _, T, _ = q_nope.shape
        # rows of all sequences in one product a head, so that the head's weights are read once
        rows = q_nope.transpose(1, 0, 2, 3).reshape(self.num_heads, B * T, -1)
        q_latent = self.embed_q(rows, transpose=self.has_transposed_keys)
        q_latent = q_latent.reshape(self.num_heads, B, T, -1).transpose(1, 0, 2, 3)
        out = self._attend_latents(q_latent, q_rope, latent, k_rope, mask)  # (B, H, T, R)
        out = out.transpose(1, 0, 2, 3).reshape(self.num_heads, B * T, self.rank)
        return self.unembed_out(out).reshape(self.num_heads, B, T, -1).transpose(1, 0, 2, 3)

    def _attend_latents(
        self, q_latent: mx.array, q_rope: mx.array, latent: mx.array, k_rope: mx.array, mask: Any
    ) -> mx.array:
        """Return the attention over latents (B, H, T, R), heads folded into the rows of one product."""
        B, H, T, R = q_latent.shape
        S = latent.shape[2]
        q_latent, q_rope = (q.reshape(B, H * T, -1) for q in (q_latent, q_rope))
        latent, k_rope = latent[:, 0], k_rope[:, 0]
        scores = mx.addmm(  # (B, H * T, S)
            q_rope @ k_rope.swapaxes(-1, -2), q_latent, latent.swapaxes(-1, -2), self.scale, self.scale
        )
        mask = spelled_out(mask, T, S)
        if mask is not None:
            # not -inf: a padding row that sees nothing must stay finite
            scores = mx.where(mask, scores.reshape(B, H, T, S), mx.finfo(scores.dtype).min)
        return (self.softmax(scores.reshape(B, H * T, S)) @ latent).reshape(B, H, T, R)

    def _attend_expanded(
        self, q_nope: mx.array, q_rope: mx.array, latent: mx.array, k_rope: mx.array, mask: Any
    ) -> mx.array:
        """Attend to keys and values made of the latents, as mlx-lm does with several tokens."""
        q_rope = q_rope * self.scale
        if self.attend_latents is not None:
            keys = self.embed_q.weight
            keys = keys.swapaxes(-1, -2) if self.has_transposed_keys else keys
            weights = (keys, self.unembed_out.weight)
            return self.attend_latents((q_nope * self.scale, q_rope), (latent, k_rope), weights, mask)
        scores = q_rope @ k_rope.swapaxes(-1, -2)
        mask = spelled_out(mask, *scores.shape[2:])
        if mask is not None:
            scores = mx.where(mask, scores, mx.finfo(scores.dtype).min)
        keys = self.embed_q(latent, transpose=not self.has_transposed_keys)
        values = self.unembed_out(latent)
        return mx.fast.scaled_dot_product_attention(q_nope, keys, values, scale=self.scale, mask=scores)


def spelled_out(mask: Any, num_tokens: int, num_seen: int) -> Any:
    """The mask, "causal" as bool (T, S)."""
    if isinstance(mask, str):
        return mx.arange(num_seen - num_tokens, num_seen)[:, None] >= mx.arange(num_seen)
    return mask


def _break_even(rank: int, head_width: int) -> float:
    """With how many tokens both ways take as many multiplications; head_width is of a key and a value.

    A token costs 2 R + rope a head and cached token with the latents, and head_width + rope with keys and
    values, which take R x head_width to make.
    """
    return rank * head_width / (2 * rank - head_width) if 2 * rank > head_width else math.inf


def _softmax(scores: mx.array) -> mx.array:
    """Softmax over the last axis."""
    return mx.softmax(scores, axis=-1, precise=True)
