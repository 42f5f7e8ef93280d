"""Experts on a machine without a GPU: all tokens of a step that chose an expert go through it together.

MLX's CPU build multiplies each token with each of its experts alone, so that an expert's weights are read
once a token. Here they are read once a step, packed where that can be. The rest of such a layer (attention,
router, shared experts) is mlx-lm's own code. Only float32, and never with a GPU.
"""

from __future__ import annotations

import logging
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.models.switch_layers import SwiGLU, SwitchGLU, SwitchLinear

from distributed.models.cpu.operations import NumpyOperations
from distributed.models.cpu.products import (
    Blas,
    Linear,
    Linears,
    NoBlas,
    choose_packer,
    on_blas,
    view,
)
from distributed.packing import Packed, Packer

PARTS = ("gate_proj", "up_proj", "down_proj")

logger = logging.getLogger(__name__)


def plan_experts(inner: Any, *, dtype: Any, dequantize: bool, products: str) -> ExpertsPlan | None:
    """Return how the stage's experts run on the CPU, or None where it has none or MLX has to run them.

    To be asked before weights are read, so that each is packed as it comes.

    Args:
        inner: mlx-lm's inner model, cut to the stage.
        dtype, dequantize, products: see dense.plan_dense_layers.

    Raises:
        NoPackedProducts: what was asked for by name cannot be used.
    """
    mixtures = [module for _, module in inner.named_modules() if type(module) is SwitchGLU]
    if not mixtures or dtype != mx.float32 or not all(_can_run(module, dequantize) for module in mixtures):
        return None
    try:
        blas = Blas()
    except NoBlas as reason:
        logger.info("the experts run with MLX's own CPU code: %s", reason)
        return None
    return ExpertsPlan(blas, choose_packer(products))


def _can_run(mixture: Any, dequantize: bool) -> bool:
    """Whether these are gated units without biases, plain by the time that they run."""
    parts = [mixture[name] for name in PARTS]
    is_plain = dequantize or all(type(part) is SwitchLinear for part in parts)
    return is_plain and type(mixture.activation) is SwiGLU and not any("bias" in part for part in parts)


class ExpertsPlan:
    """Takes weights as they are read, and puts experts of them in the place of mlx-lm's in the end."""

    def __init__(self, blas: Blas, packer: Packer | None) -> None:
        self.packer = packer
        self._blas = blas
        self._packed: dict[int, list[Packed]] = {}  # by id of the module, which keeps no weight then

    @property
    def packed_bytes(self) -> int:
        """Bytes of the weights that left their modules."""
        return sum(weight.num_bytes for weights in self._packed.values() for weight in weights)

    def take(self, module: Any, *, is_head: bool) -> None:
        """Pack the weights of a module that has just been read, if they are of experts; drop the plain."""
        if self.packer is None or type(module) is not SwitchLinear:
            return
        if self.packer.can_pack(module["weight"].shape[-1]):
            weights = view(module.pop("weight"))
            self._packed[id(module)] = [self.packer.pack(weight) for weight in weights]

    def place(self, inner: Any) -> None:
        """Replace every mixture of the inner model; all weights have been read by now."""
        for _, module in inner.named_modules():
            for name, part in list(module.items()):
                if type(part) is SwitchGLU:
                    setattr(module, name, self._make(part))

    def _make(self, mixture: Any) -> Experts:
        gate, up, down = (mixture[name] for name in PARTS)
        pairs = zip(self._linears(gate), self._linears(up), self._join(gate, up), strict=True)
        gate_ups = [Linears([of_gate, of_up], joined) for of_gate, of_up, joined in pairs]
        return Experts(gate_ups, self._linears(down))

    def _linears(self, module: Any) -> list[Linear]:
        """One layer an expert."""
        packed = self._packed.get(id(module))
        if packed is not None:
            return [Linear(weight, weight.width, None) for weight in packed]
        return [Linear(on_blas(self._blas, weight), len(weight), None) for weight in view(module["weight"])]

    def _join(self, gate: Any, up: Any) -> list[Packed | None]:
        """The products with both weights of each expert; None where they are not packed."""
        packed = [self._packed.get(id(module)) for module in (gate, up)]
        if self.packer is None or packed[0] is None or packed[1] is None:
            return [None] * len(gate["weight"])
        return [self.packer.join(pair) for pair in zip(*packed, strict=True)]


class Experts:
    """Stands in the place of mlx-lm's SwitchGLU: x (…, D) and each token's experts (…, K) give (…, K, D)."""

    def __init__(self, gate_ups: list[Linears], downs: list[Linear]) -> None:
        self._gate_ups, self._downs = gate_ups, downs
        self._operations = NumpyOperations()

    def __call__(self, x: mx.array, indices: mx.array) -> mx.array:
        tokens = view(x).reshape(-1, x.shape[-1])
        chosen = np.asarray(indices).ravel()
        order = np.argsort(chosen, kind="stable")
        bounds = np.searchsorted(chosen[order], np.arange(len(self._downs) + 1))
        out = np.empty((len(chosen), tokens.shape[-1]), np.float32)
        for expert in np.flatnonzero(np.diff(bounds)):
            places = order[bounds[expert] : bounds[expert + 1]]
            gate, up = self._gate_ups[expert](tokens[places // indices.shape[-1]])
            out[places] = self._downs[expert](self._operations.gate(gate, up))
        return mx.array(out.reshape(*indices.shape, -1))
