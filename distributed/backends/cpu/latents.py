"""Attention of a chunk over latents, on a machine without a GPU: head by head, which stays in the cache.

Letters: B rows, T new tokens, S cached tokens, H heads, R the latent's width. Only float32.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

from distributed.backends.cpu.attention import causal_mask, exponentiate, softmax_in_place
from distributed.backends.cpu.compiling import Float32Array
from distributed.backends.cpu.products import view
from prompts.mlx_lm_import import import_mlx_lm

mla = import_mlx_lm("models.mla")


def place_latents(inner: Any, dtype: Any) -> None:
    """Let latent attention (models/latent_attention.py) of float32 use what is faster here.

    Args:
        inner: mlx-lm's inner model, its weights read.
    """
    for _, module in inner.named_modules() if dtype == mx.float32 else ():
        if hasattr(module, "attend_latents"):
            module.softmax = softmax_in_place
            if type(module.embed_q) is type(module.unembed_out) is mla.MultiLinear:
                module.attend_latents = attend_latents


def attend_latents(
    queries: tuple[mx.array, mx.array],
    cached: tuple[mx.array, mx.array],
    weights: tuple[mx.array, mx.array],
    mask: mx.array | str | None,
) -> mx.array:
    """Return softmax(q k^T) v of all heads, (B, H, T, V), with keys and values made of the latents anew.

    Args:
        queries: (B, H, T, nope) and rotated (B, H, T, rope), both scaled.
        cached: the latents (B, 1, S, R), and the rotated keys (B, 1, S, rope) that all heads share.
        weights: of keys (H, nope, R) and values (H, V, R).
        mask: None (all may be seen), "causal", or bool (B, 1, T, S) where True may be seen.
    """
    plain, rotated = (np.asarray(part) for part in queries)
    latents, shared_keys = (np.asarray(part)[:, 0] for part in cached)
    key_weights, value_weights = (view(part) for part in weights)
    num_rows, num_heads, num_tokens, width = plain.shape
    keys = np.empty((latents.shape[1], width + rotated.shape[-1]), np.float32)
    out = np.empty((num_rows, num_heads, num_tokens, value_weights.shape[1]), np.float32)
    for row in range(num_rows):
        hidden = None if mask is None or isinstance(mask, str) else ~np.asarray(mask)[row, 0]
        keys[:, width:] = shared_keys[row]
        for head in range(num_heads):
            np.matmul(latents[row], key_weights[head].T, out=keys[:, :width])
            joined = np.concatenate([plain[row, head], rotated[row, head]], axis=-1)
            scores = joined @ keys.T
            _hide(scores, hidden, is_causal=isinstance(mask, str))
            totals = exponentiate(scores)
            np.matmul(scores, latents[row] @ value_weights[head].T, out=out[row, head])
            out[row, head] /= totals
    return mx.array(out)


def _hide(scores: Float32Array, hidden: np.ndarray | None, *, is_causal: bool) -> None:
    """Take what may not be seen out of scores (T, S)."""
    if is_causal:
        scores[:, scores.shape[1] - len(scores) :] += causal_mask(len(scores))
    elif hidden is not None:
        # not -inf: a padding row that sees nothing must stay finite
        scores[hidden] = np.finfo(np.float32).min
