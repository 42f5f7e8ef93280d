"""Latent attention to the tokens that an indexer selects (DeepSeek-V3.2, GLM-5).

The indexer has heads of its own: it scores each token that may be seen, and attention sees the index_topk
best (DeepSeek-V3.2-Exp paper, section 2.1; mlx_lm 0.32.2 models/deepseek_v32.py). Its key of a token is
cached behind the rotated key, in one array: a layer has one cache, wider by index_head_dim.
"""

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from distributed.models.latent_attention import LatentAttention, spelled_out


class Indexer(nn.Module):
    """Scores tokens; the tensors are named as in checkpoints.

    Letters: B rows, T new tokens, S cached tokens, H heads, D width of a head.
    """

    def __init__(self, args: Any, rope: nn.Module) -> None:
        super().__init__()
        self.num_heads, self.head_dim = args.index_n_heads, args.index_head_dim
        self.wq_b = nn.Linear(args.q_lora_rank, self.num_heads * self.head_dim, bias=False)
        self.wk = nn.Linear(args.hidden_size, self.head_dim, bias=False)
        # DeepSeek's own code and transformers 5.24; mlx_lm 0.32.2 takes 1e-5
        self.k_norm = nn.LayerNorm(self.head_dim, eps=1e-6)
        self.weights_proj = nn.Linear(args.hidden_size, self.num_heads, bias=False)
        self.rope = rope

    def keys(self, x: mx.array, offset: Any) -> mx.array:
        """Return the keys of new tokens, (B, 1, T, D)."""
        keys: mx.array = self.rope(self.k_norm(self.wk(x))[:, None], offset)
        return keys

    def scores(self, x: mx.array, asking: mx.array, keys: mx.array, offset: Any) -> mx.array:
        """Return the scores of all tokens for each new one, (B, 1, T, S).

        Args:
            asking: the latents of queries, (B, T, q_lora_rank).
            keys: (B, 1, S, D).
        """
        B, T, _ = x.shape
        q = self.wq_b(asking).reshape(B, T, self.num_heads, -1).transpose(0, 2, 1, 3)
        q = self.rope(q, offset).transpose(0, 2, 1, 3).reshape(B, T * self.num_heads, -1)
        scores = mx.maximum(q @ keys[:, 0].swapaxes(-1, -2), 0).reshape(B, T, self.num_heads, -1)
        weights = self.weights_proj(x) * (self.num_heads * self.head_dim) ** -0.5
        return (weights[:, :, None] @ scores).swapaxes(1, 2)


class IndexedAttention(LatentAttention):
    """Latent attention with an indexer; caches (latent, rotated key and indexer's key), both (B, 1, S, _)."""

    def __init__(self, indexer_rope: nn.Module, args: Any, rope: nn.Module, eps: float) -> None:
        super().__init__(args, rope, eps)
        self.num_selected = args.index_topk
        self.indexer = Indexer(args, indexer_rope)

    def __call__(self, x: mx.array, mask: Any = None, cache: Any = None) -> mx.array:
        """Attend as LatentAttention does, to the selected tokens."""
        offset = cache.offset if cache is not None else 0
        asking = self._asking(x)
        queries, latent, k_rope = self._project(x, asking, offset)
        keys = mx.concatenate([k_rope, self.indexer.keys(x, offset)], axis=-1)
        if cache is not None:
            latent, keys = cache.update_and_fetch(latent, keys)
        k_rope, index_keys = mx.split(keys, [self.rope_dim], axis=-1)
        if latent.shape[2] > self.num_selected:
            mask = spelled_out(mask, x.shape[1], latent.shape[2])
            scores = self.indexer.scores(x, asking, index_keys, offset)
            if mask is not None:
                scores = mx.where(mask, scores, -mx.inf)
            selected = mx.argpartition(scores, kth=-self.num_selected, axis=-1)[..., -self.num_selected :]
            latent, k_rope, mask = _select(latent, k_rope, mask, selected)
        return self._attend(queries, latent, k_rope, mask)


def _select(
    latent: mx.array, k_rope: mx.array, mask: Any, selected: mx.array
) -> tuple[mx.array, mx.array, Any]:
    """Return latents, keys and a mask with which attention sees the selected tokens (B, 1, T, K) alone.

    A row that is shorter than the selection has selected tokens that it must not see: the mask stays.
    """
    if selected.shape[2] > 1:
        chosen = mx.zeros((*selected.shape[:-1], latent.shape[2]), mx.bool_)
        chosen = mx.put_along_axis(chosen, selected, mx.array(True), axis=-1)
        return latent, k_rope, chosen if mask is None else chosen & mask
    places = selected[:, :, 0, :, None]  # (B, 1, K, 1)
    latent, k_rope = (
        mx.take_along_axis(array, mx.broadcast_to(places, (*places.shape[:-1], array.shape[-1])), axis=2)
        for array in (latent, k_rope)
    )
    return latent, k_rope, None if mask is None else mx.take_along_axis(mask, selected, axis=-1)
