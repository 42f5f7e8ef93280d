"""Experts on a machine without a GPU: all tokens of a chunk that chose an expert go through it together.

MLX's CPU build multiplies each token with each of its experts alone, so that an expert's weights are read
once a token (mlx 0.32.4, gather_mm). With few tokens most experts have one at most, and there is nothing to
gain. Only float32, plain or packed with 4 or 8 bits, on weights as MLX has loaded them, and never with a GPU.
A packed expert is unpacked for the chunk: MLX's product with packed weights takes several times as long.
"""

from __future__ import annotations

import logging
from typing import Any

import mlx.core as mx
import numpy as np

from distributed.backends.cpu.compiling import Float32Array
from distributed.backends.cpu.operations import Operations
from distributed.backends.cpu.products import Blas, NoBlas, Product, on_blas, view
from prompts.mlx_lm_import import import_mlx_lm

MIN_TOKENS = 32  # fewer are left to MLX, whose steps need no change of threads in their midst

_WIDTHS = (4, 8)  # bits of packed weights that are unpacked here

switch_layers = import_mlx_lm("models.switch_layers")

logger = logging.getLogger(__name__)


def place_experts(inner: Any) -> bool:
    """Put experts of our own in the place of every mixture that they can stand for; whether there was one.

    Args:
        inner: mlx-lm's inner model, its weights read.
    """
    found = [
        (module, name, part)
        for _, module in inner.named_modules()
        for name, part in module.items()
        if type(part) is switch_layers.SwitchGLU and _can_run(part)
    ]
    try:
        blas = Blas() if found else None
    except NoBlas as reason:
        logger.info("the experts run with MLX's own CPU code: %s", reason)
        return False
    for module, name, part in found:
        setattr(module, name, Experts(blas, part))
    return bool(found)


def _can_run(mixture: Any) -> bool:
    """Whether these are gated units of plain or packed float32 weights, without biases."""
    parts = [mixture[name] for name in ("gate_proj", "up_proj", "down_proj")]
    is_gated = type(mixture.activation) is switch_layers.SwiGLU
    return is_gated and all(_is_plain(part) or _is_packed(part) for part in parts)


def _is_plain(part: Any) -> bool:
    is_plain = type(part) is switch_layers.SwitchLinear and "bias" not in part
    return is_plain and part["weight"].dtype == mx.float32


def _is_packed(part: Any) -> bool:
    return (
        type(part) is switch_layers.QuantizedSwitchLinear
        and (part.mode, part["scales"].dtype) == ("affine", mx.float32)
        and part.bits in _WIDTHS
        and "bias" not in part
    )


def _make_products(blas: Blas, part: Any) -> list[Product]:
    """Return each expert's product."""
    if _is_plain(part):
        return [on_blas(blas, weight) for weight in view(part["weight"])]
    weights = np.asarray(part["weight"]).view(np.uint8)
    scales, biases = view(part["scales"]), view(part["biases"])
    return [_on_packed(blas, *arrays, part.bits) for arrays in zip(weights, scales, biases, strict=True)]


def _on_packed(blas: Blas, packed: Any, scales: Float32Array, biases: Float32Array, bits: int) -> Product:
    """Return the product with a weight (N, K): bytes (N, K * bits / 8), scales and biases (N, groups)."""

    def multiply(x: Float32Array) -> Float32Array:
        values = packed if bits == 8 else np.stack([packed & 15, packed >> 4], axis=-1)
        weight = values.reshape(*scales.shape, -1).astype(np.float32)
        weight *= scales[..., None]
        weight += biases[..., None]
        return on_blas(blas, weight.reshape(len(scales), -1))(x)

    return multiply


class Experts:
    """Stands in the place of mlx-lm's SwitchGLU: x (…, D) and each token's experts (…, K) give (…, K, D)."""

    def __init__(self, blas: Any, mixture: Any) -> None:
        self._mixture = mixture
        self._gates, self._ups, self._downs = (
            _make_products(blas, mixture[name]) for name in ("gate_proj", "up_proj", "down_proj")
        )
        self._operations = Operations()

    def __call__(self, x: mx.array, indices: mx.array) -> mx.array:
        width, num_chosen = x.shape[-1], indices.shape[-1]
        if x.size < MIN_TOKENS * width:
            return self._mixture(x, indices)
        tokens = view(x).reshape(-1, width)
        chosen = np.asarray(indices).ravel()
        order = np.argsort(chosen, kind="stable")
        bounds = np.searchsorted(chosen[order], np.arange(len(self._downs) + 1))
        out = np.empty((len(chosen), width), np.float32)
        for expert in np.flatnonzero(np.diff(bounds)):
            places = order[bounds[expert] : bounds[expert + 1]]
            given = tokens[places // num_chosen]
            gated = self._operations.gate(self._gates[expert](given), self._ups[expert](given))
            out[places] = self._downs[expert](gated)
        return mx.array(out.reshape(*indices.shape, width))
