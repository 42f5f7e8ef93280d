"""A model's sizes and costs, layer by layer, from its config and the headers of its weights. No MLX, no
weights.

Cost is the bytes of weights that one token uses: of experts only the active ones, none of the embeddings, a
share of the head. Knows nothing of ranks or hosts: `layer_plan.py` splits the model.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

from distributed.planning.checkpoint import BadCheckpoint, TensorInfo, is_tied, read_config, read_tensors
from distributed.planning.families.family import count_experts
from distributed.planning.families.hybrids import layer_kinds, state_values
from distributed.planning.families.served import FAMILIES
from distributed.planning.families.window_config import layer_windows
from distributed.planning.model_listing import check_config_listed, check_files_listed
from distributed.planning.stage_files import EMBEDDINGS, LAYER, NORMS, check_tensors

_EXPERT = re.compile(r"\.(switch_mlp|experts|block_sparse_moe\.(input|output)_linear)\.")
# Only the last token of a prompt passes the head, and its one large product runs closer to the machine's peak
# than a layer does.
HEAD_COST_SHARE = 0.75
# Widths of a head for which Metal keeps no scores in memory (mlx 0.32, scaled_dot_product_attention.cpp).
_FUSED_HEADS = (64, 72, 80, 96, 128)
_FLOATS = ("F32", "F16", "BF16")
# A layer keeps its window alone where contexts are so long and rows take so many times as much without: such
# rows have no drafts, and reuse no part of a prefix but where it was copied whole.
MIN_RING_TOKENS, MIN_RING_SAVING = 8192, 1.5


@dataclass(frozen=True)
class ModelShape:
    """A model's sizes and costs; costs are in any unit, the same for layers and head."""

    num_layers: int
    layer_bytes: tuple[int, ...]
    embed_bytes: int
    head_bytes: int  # the final norm, and the head or, where tied, the embeddings again
    tied: bool
    layer_kv_bytes: tuple[int, ...]  # of one token
    layer_state_bytes: tuple[int, ...]  # of one row, however long
    score_bytes: int  # of one token's attention to another in a prefill chunk on a GPU, all heads of a layer
    layer_costs: tuple[float, ...]
    head_cost: float

    @cached_property
    def _bytes_before(self) -> list[int]:
        return [0, *accumulate(self.layer_bytes)]

    @cached_property
    def _costs_before(self) -> list[float]:
        return [0.0, *accumulate(self.layer_costs)]

    @cached_property
    def kv_bytes_per_token(self) -> int:
        """The bytes of KV of a token in the layer that has the most; in most models all have as much."""
        return max(self.layer_kv_bytes)

    @cached_property
    def has_unlike_layers(self) -> bool:
        """Whether layers differ in their KV, or keep states of rows."""
        return any(self.layer_state_bytes) or len(set(self.layer_kv_bytes)) > 1

    @cached_property
    def _kv_before(self) -> list[tuple[int, int]]:
        """Bytes of KV of a token, and of states of a row, in all layers before each place."""
        return list(
            zip(
                accumulate(self.layer_kv_bytes, initial=0),
                accumulate(self.layer_state_bytes, initial=0),
                strict=True,
            )
        )

    def kv_bytes(self, layers: range, num_tokens: int, num_rows: int) -> int:
        """Return the bytes of KV and states of these layers."""
        (tokens_before, rows_before), (tokens, rows) = (
            self._kv_before[end] for end in (layers.start, layers.stop)
        )
        return (tokens - tokens_before) * num_tokens + (rows - rows_before) * num_rows

    @property
    def weights_bytes(self) -> int:
        """The bytes of all weights; embeddings that are also the head count twice, once for each end."""
        return sum(self.layer_bytes) + self.embed_bytes + self.head_bytes

    def layers_bytes(self, layers: range) -> int:
        """Return the bytes of weights of these layers, without embeddings and head."""
        return self._bytes_before[layers.stop] - self._bytes_before[layers.start]

    def stage_bytes(self, layers: range, *, is_first: bool, is_last: bool) -> int:
        """Return the bytes of weights of a stage, with embeddings or head."""
        ends = (self.embed_bytes if is_first else 0) + (self.head_bytes if is_last else 0)
        shared = self.embed_bytes if is_first and is_last and self.tied else 0
        return self.layers_bytes(layers) + ends - shared

    def stage_cost(self, layers: range, *, is_last: bool) -> float:
        """Return the cost of a token in a stage."""
        own = self._costs_before[layers.stop] - self._costs_before[layers.start]
        return own + (self.head_cost if is_last else 0.0)


def read_model_files(folder: Path) -> tuple[dict[str, Any], dict[str, TensorInfo]]:
    """Read and check config and headers of a folder that has all its files; shapes are not checked.

    Raises:
        ModelError: the model cannot be served, or files are missing or contradict each other.
    """
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    check_config_listed(str(folder), names)
    config = read_config(folder)
    check_files_listed(str(folder), names)
    tensors = read_tensors(folder)
    check_tensors(str(folder), config, tensors)
    return config, tensors


def read_shape(
    folder: Path, *, dequantize: bool = False, float_bytes: int | None = None, num_tokens: int = 0
) -> ModelShape:
    """Read a model's shape from a folder that has all its files; see `make_shape`.

    Args:
        num_tokens: the longest context; 0: layers with a window keep the KV of all tokens.

    Raises:
        BadCheckpoint: files are missing or contradict each other.
    """
    config, tensors = settle_windows(str(folder), read_config(folder), num_tokens), read_tensors(folder)
    return make_shape(str(folder), config, tensors, dequantize=dequantize, float_bytes=float_bytes)


def make_shape(
    name: str,
    config: Mapping[str, Any],
    tensors: Mapping[str, TensorInfo],
    *,
    dequantize: bool = False,
    float_bytes: int | None = None,
) -> ModelShape:
    """Make a model's shape from its config and the headers of its weights.

    Args:
        name: of the model, for error messages.
        dequantize: count packed weights as unpacked to float_bytes.
        float_bytes: bytes of a float once loaded, and of a KV value; None: as stored, and 2 for KV.

    Raises:
        BadCheckpoint: a layer has no weights, or the config lacks what a layer's KV needs.
    """
    sizes = _loaded_bytes(tensors, config, dequantize, float_bytes)
    num_layers, active = int(config["num_hidden_layers"]), _active_share(config)
    layer_bytes, layer_costs = [0] * num_layers, [0.0] * num_layers
    for tensor, size in sizes.items():
        match = LAYER.match(tensor)
        if match and int(match[1]) < num_layers:
            layer_bytes[int(match[1])] += size
            layer_costs[int(match[1])] += size * (active if _EXPERT.search(tensor) else 1.0)
    if 0 in layer_bytes:
        raise BadCheckpoint(f"{name} has no weights of layer {layer_bytes.index(0)}")
    tied = is_tied(config, tensors)
    embed_bytes = sum(_sum_under(sizes, f"model.{part}.") for part in EMBEDDINGS)
    head_bytes = (embed_bytes if tied else _sum_under(sizes, "lm_head.")) + sum(
        _sum_under(sizes, f"model.{norm}.") for norm in NORMS
    )
    kv_values = layer_kv_values(name, config)  # names a key that is missing
    return ModelShape(
        num_layers=num_layers,
        layer_bytes=tuple(layer_bytes),
        embed_bytes=embed_bytes,
        head_bytes=head_bytes,
        tied=tied,
        layer_kv_bytes=tuple(values * (float_bytes or 2) for values in kv_values),
        layer_state_bytes=tuple(
            narrow * (float_bytes or 2) + wide * 4 for narrow, wide in layer_state_values(name, config)
        ),
        score_bytes=_score_bytes(config),
        layer_costs=tuple(layer_costs),
        head_cost=HEAD_COST_SHARE * head_bytes,
    )


def _sum_under(sizes: Mapping[str, int], prefix: str) -> int:
    return sum(size for name, size in sizes.items() if name.startswith(prefix))


def _loaded_bytes(
    tensors: Mapping[str, TensorInfo], config: Mapping[str, Any], dequantize: bool, float_bytes: int | None
) -> dict[str, int]:
    """Return each tensor's bytes once loaded; unpacked weights include their scales and biases."""
    sizes = {}
    for name, info in tensors.items():
        path, _, leaf = name.rpartition(".")
        scales = tensors.get(f"{path}.scales")
        if scales and dequantize and leaf in ("weight", "scales", "biases"):
            values = scales.num_values * _group_size(path, config) if leaf == "weight" else 0
            sizes[name] = values * (float_bytes or 4)
        elif dequantize and name.endswith(("_blocks", "_scales")):  # two values a byte of mxfp4
            sizes[name] = 2 * info.num_values * (float_bytes or 4) if name.endswith("_blocks") else 0
        elif float_bytes and info.dtype in _FLOATS:
            sizes[name] = info.num_values * float_bytes
        else:
            sizes[name] = info.num_bytes
    return sizes


def _group_size(path: str, config: Mapping[str, Any]) -> int:
    quantization = config.get("quantization") or {}
    override = quantization.get(path)
    return int((override if isinstance(override, dict) else quantization).get("group_size", 64))


def _active_share(config: Mapping[str, Any]) -> float:
    """Return the share of a layer's routed experts that one token uses."""
    num_experts = count_experts(config)
    return config["num_experts_per_tok"] / num_experts if num_experts else 1.0


def _head_size(config: Mapping[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _score_bytes(config: Mapping[str, Any]) -> int:
    """Return the bytes of one score of all heads; 0 where a GPU keeps none."""
    has_own_scores = any(config.get(key) for key in ("kv_lora_rank", "attn_logit_softcapping", "v_head_dim"))
    width = _head_size(config)
    if not has_own_scores and {width, config.get("global_head_dim") or width} <= {*_FUSED_HEADS}:
        return 0
    return 2 * int(config["num_attention_heads"])


def layer_kv_values(name: str, config: Mapping[str, Any]) -> list[int]:
    """Return the values that each layer caches of a token; 0 where it keeps a state of a row instead.

    Args:
        name: of the model, for error messages.

    Raises:
        BadCheckpoint: the config lacks what a layer's KV needs.
    """
    kinds = layer_kinds(config)
    return [n if "kv" in kind else 0 for n, kind in zip(_kv_values(name, config), kinds, strict=True)]


def layer_state_values(name: str, config: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Return the values that each layer keeps of a row, however long: in the weights' type, and in float32.

    A layer that keeps its window keeps the keys and values of so many tokens.

    Raises:
        BadCheckpoint: the config lacks what a layer's KV needs.
    """
    kinds, window = layer_kinds(config), config.get("sliding_window") or 0
    state = state_values(config) if any("state" in kind for kind in kinds) else (0, 0)
    return [
        (window * values, 0) if "window" in kind else state if "state" in kind else (0, 0)
        for values, kind in zip(_kv_values(name, config), kinds, strict=True)
    ]


def settle_windows(name: str, config: Mapping[str, Any], num_tokens: int) -> dict[str, Any]:
    """Return the config with the decision whether layers with a window keep no more than it.

    Args:
        name: of the model, for error messages.
        num_tokens: the longest context.

    Raises:
        BadCheckpoint: the config lacks what a layer's KV needs.
    """
    values, windows = _kv_values(name, config), layer_windows(config)
    kept = sum(
        each * min(window or num_tokens, num_tokens) for each, window in zip(values, windows, strict=False)
    )
    is_worth = num_tokens >= MIN_RING_TOKENS and MIN_RING_SAVING * kept <= num_tokens * sum(values)
    return {**config, "keeps_windows": any(windows) and is_worth}


def _kv_values(name: str, config: Mapping[str, Any]) -> list[int]:
    """Return the values of a token in each layer: the latent, or keys and values of all KV heads."""
    num_layers = int(config["num_hidden_layers"])
    try:
        if "layer_kv_values" in config:
            return list(config["layer_kv_values"])
        family = FAMILIES.get(config["model_type"])  # a made-up model has none
        if family is not None and family.kv == "latent":
            indexed = config["index_head_dim"] if "index_topk" in family.honoured else 0
            return [int(config["kv_lora_rank"] + config["qk_rope_head_dim"] + indexed)] * num_layers
        num_heads = int(config.get("num_key_value_heads") or config["num_attention_heads"])
        return [2 * num_heads * _head_size(config)] * num_layers
    except KeyError as error:
        raise BadCheckpoint(f"the config of {name} has no {error.args[0]}") from error
