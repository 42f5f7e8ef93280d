"""The layers of a llama-like model: norm, attention, norm, gated feed-forward.

Reads weights out of mlx-lm's modules (llama, ministral3, qwen2, qwen3: the same parts under the same names)
and runs them with NumPy. Knows nothing of files, ranks or requests.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray

from distributed.backends.backend import StageRunner
from distributed.backends.cpu.attention import attend_chunks
from distributed.backends.cpu.compiling import CannotCompile, Float32Array
from distributed.backends.cpu.kernels import Kernels, PackedPanels
from distributed.backends.cpu.kv_table import CpuKVTable, LayerKV, View
from distributed.backends.cpu.layer_kernels import LayerKernels
from distributed.backends.cpu.operations import Operations
from distributed.backends.cpu.products import Blas, Linear, Linears, NoBlas, choose_kernels, on_blas, view
from distributed.backends.cpu.rotary import Rotary, Rotation, UnknownRotation
from distributed.models.general import StageParts
from distributed.models.stage_model import HEAD, StageModel

SERVED_TYPES = ("llama", "ministral3", "qwen2", "qwen3")

logger = logging.getLogger(__name__)


def plan_dense_layers(parts: StageParts, *, dtype: Any, dequantize: bool, products: str) -> DensePlan | None:
    """Return how the stage's layers run on the CPU, or None where MLX has to run them.

    To be asked before weights are read, so that each is packed as it comes.

    Args:
        dtype: what floats will be cast to.
        dequantize: whether quantized modules will be replaced by plain ones.
        products: a value of CPU_PRODUCTS.

    Raises:
        NoPackedProducts: what was asked for by name cannot be used.
    """
    config = parts.config
    if config["model_type"] not in SERVED_TYPES or config.get("layer_types") or dtype != mx.float32:
        return None
    if not dequantize and not _is_plain(parts.inner, parts.head):
        return None
    try:
        blas, rotary = Blas(), _make_rotary(parts.inner.layers[parts.cut.layers.start].self_attn, config)
    except (NoBlas, UnknownRotation) as reason:
        logger.info("the layers run with MLX's own CPU code: %s", reason)
        return None
    kernels = choose_kernels(products)
    operations = _make_operations(config) if kernels is not None else Operations()
    return DensePlan(blas, kernels, rotary, operations)


def _is_plain(*modules: Any) -> bool:
    """Whether every product is a plain one."""
    plain = (nn.Linear, nn.Embedding)
    return all(
        type(part) in plain
        for module in modules
        if module is not None
        for _, part in module.named_modules()
        if "weight" in part and part["weight"].ndim == 2
    )


class DensePlan:
    """Takes weights as they are read, and makes the layers of them in the end."""

    def __init__(self, blas: Blas, kernels: Kernels | None, rotary: Rotary, operations: Operations) -> None:
        self.rotary, self.kernels, self.operations = rotary, kernels, operations
        self._blas = blas
        self._packed: dict[int, PackedPanels] = {}  # by id of the module, which keeps no weight then

    @property
    def packed_bytes(self) -> int:
        """Bytes of the weights that left their modules."""
        return sum(weight.num_bytes for weight in self._packed.values())

    def take(self, path: str, module: Any) -> None:
        """Pack the weight of a module that has just been read, and drop its plain form.

        An embedding that is looked up in stays as it is, one that is the head and nothing else does not.
        """
        if self.kernels is None or not (path == HEAD or type(module) is nn.Linear):
            return
        if self.kernels.can_pack(module["weight"].shape[-1]):
            self._packed[id(module)] = self.kernels.pack(view(module.pop("weight")))

    def linear(self, module: Any) -> Linear:
        """Return the layer of a module."""
        packed = self._packed.get(id(module))
        width = packed.width if packed is not None else module["weight"].shape[0]
        bias = view(module["bias"]) if "bias" in module else None
        return Linear(packed or on_blas(self._blas, view(module["weight"])), width, bias)

    def linears(self, modules: list[Any]) -> Linears:
        """Return layers that have the same input, to run as one where their weights are packed."""
        packed = [self._packed[id(module)] for module in modules if id(module) in self._packed]
        joined = None
        if self.kernels is not None and len(packed) == len(modules):
            joined = self.kernels.join(packed)
        return Linears([self.linear(module) for module in modules], joined)


class Norm:
    """RMS norm of x (…, D), each row on its own."""

    def __init__(self, operations: Operations, module: Any) -> None:
        self._operations = operations
        self._weight, self._eps = view(module["weight"]), float(module.eps)

    def __call__(self, x: Float32Array) -> Float32Array:
        return self._operations.norm(x, self._weight, self._eps)


class DenseLayer:
    """One layer; `forward` adds to the hidden states in place."""

    def __init__(self, plan: DensePlan, module: Any) -> None:
        attention, feed = module.self_attn, module.mlp
        self._operations = plan.operations
        self._norm = Norm(plan.operations, module.input_layernorm)
        self._feed_norm = Norm(plan.operations, module.post_attention_layernorm)
        self._q_norm, self._k_norm = (
            Norm(plan.operations, attention[name]) if name in attention else None
            for name in ("q_norm", "k_norm")
        )
        self._qkv = plan.linears([attention[name] for name in ("q_proj", "k_proj", "v_proj")])
        self._gate_up = plan.linears([feed[name] for name in ("gate_proj", "up_proj")])
        self._o, self._down = plan.linear(attention["o_proj"]), plan.linear(feed["down_proj"])

    def forward(
        self, hidden: Float32Array, kv: LayerKV, view: View, rotation: Rotation, head_dim: int
    ) -> None:
        """Add attention and feed-forward to hidden (B * T, D)."""
        run = self._operations
        queries, keys, values = (
            part.reshape(len(hidden), -1, head_dim) for part in self._qkv(self._norm(hidden))
        )
        if self._q_norm is not None and self._k_norm is not None:
            queries, keys = self._q_norm(queries), self._k_norm(keys)
        queries, keys = run.rotate(queries, rotation, scales=True), run.rotate(keys, rotation, scales=False)
        rows = (view.step.num_rows, view.step.num_tokens)
        kv.write(view, keys.reshape(*rows, -1, head_dim), values.reshape(*rows, -1, head_dim))
        attend = run.attend_new if view.step.num_tokens == 1 else attend_chunks
        hidden += self._o(attend(queries, kv, view))
        hidden += self._down(run.gate(*self._gate_up(self._feed_norm(hidden))))


class DenseLayers(StageRunner):
    """A stage's layers with embedding or norm and head where it has them."""

    def __init__(self, plan: DensePlan, model: StageModel, head: Any) -> None:
        """Args: head: a linear layer, or the embedding it is tied to; None but on the last stage."""
        super().__init__(replace(model, weights_bytes=model.weights_bytes + plan.packed_bytes))
        inner = model.inner
        self.use_threads = plan.kernels.use_threads if plan.kernels is not None else None
        self._rotary = plan.rotary
        self._layers = [DenseLayer(plan, layer) for layer in model.own_layers]
        embedding = getattr(inner, "embed_tokens", None)
        self._embedding = view(embedding["weight"]) if isinstance(embedding, nn.Embedding) else None
        self._norm = Norm(plan.operations, inner.norm) if isinstance(inner.norm, nn.RMSNorm) else None
        self._head = plan.linear(head) if head is not None else None

    def make_table(self) -> CpuKVTable:
        """Make an empty KV table for these layers."""
        return CpuKVTable(len(self._layers))

    def forward(self, x: mx.array, begun: tuple[View, list[LayerKV]]) -> mx.array:
        """Run the layers; see StageRunner.forward."""
        step_view, layers_kv = begun
        given = np.asarray(x)
        hidden = self._embedding[given] if self._embedding is not None else given.copy()
        shape = hidden.shape
        hidden = hidden.reshape(-1, shape[-1])
        rotation = self._rotary.at(step_view.positions)
        for layer, kv in zip(self._layers, layers_kv, strict=True):
            layer.forward(hidden, kv, step_view, rotation, self._rotary.head_dim)
        if self._norm is not None:
            hidden = self._norm(hidden)
        return mx.array(hidden.reshape(shape))

    def logits(self, hidden: mx.array, rows: Sequence[int], columns: Sequence[int]) -> mx.array:
        """Return the logits (W, V) of some of the hidden states (B, T, D); last stage only."""
        assert self._head is not None, "only the last stage has the head"
        return mx.array(self._head(np.asarray(hidden)[list(rows), list(columns)]))


def _make_operations(config: dict[str, Any]) -> Operations:
    """Return compiled operations where these shapes and this machine allow them, else NumPy's."""
    num_heads = int(config["num_attention_heads"])
    num_kv_heads = int(config.get("num_key_value_heads") or num_heads)
    head_dim = _head_dim(config)
    widths = (int(config["hidden_size"]), int(config["intermediate_size"]), head_dim)
    try:
        return LayerKernels(num_heads // num_kv_heads, head_dim, widths)
    except CannotCompile as error:
        logger.info("norms and attention by NumPy: %s", error)
        return Operations()


def _head_dim(config: dict[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _make_rotary(attention: Any, config: dict[str, Any]) -> Rotary:
    """Raises: UnknownRotation."""
    return Rotary(attention.rope, _head_dim(config), _query_scale(attention, config))


def _query_scale(attention: Any, config: dict[str, Any]) -> Callable[[NDArray[np.intp]], Float32Array]:
    """The factor of queries by position: the softmax scale, and ministral3's growth with the position."""
    scale = float(attention.scale)
    rope = config.get("rope_parameters") or {}
    beta = float(rope.get("llama_4_scaling_beta", 0.0)) if config["model_type"] == "ministral3" else 0.0

    def scale_of(positions: NDArray[np.intp]) -> Float32Array:
        factor = np.full(len(positions), scale, np.float64)
        if beta:
            factor *= 1 + beta * np.log1p(positions // rope["original_max_position_embeddings"])
        return factor.astype(np.float32)

    return scale_of
