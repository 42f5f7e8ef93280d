"""Who gets which layers: pure arithmetic over weight headers and the ranks' memory and speed. No MLX.

Rank 0 has the last layers and the head, rank N-1 the first layers and the embeddings. A ring runs at the pace
of its slowest stage, so the plan makes the longest stage time (cost / speed) as short as memory allows, and
of such plans takes the most even one. Cost is by default the bytes of weights that one token touches: of
experts only the active ones, of the embeddings nothing, of the head a share. Every rank that computes a plan
from the same numbers gets the same plan.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

from distributed.checkpoint import (
    INDEX_NAME,
    BadCheckpoint,
    ModelError,
    TensorInfo,
    hash_files,
    is_tied,
    read_config,
    read_tensors,
)

_LAYER = re.compile(r"model\.layers\.(\d+)\.")
_EXPERT = re.compile(r"\.mlp\.(switch_mlp|experts\.\d+)\.")
# Prompt tokens but the last pass no head, and its one large product runs nearer the machine's peak than a
# layer: a head of 8 layers' bytes took the time of 5.4 layers at 16 rows (SmolLM2-135M, float32, mkl).
HEAD_COST_SHARE = 0.6
_FLOATS = ("F32", "F16", "BF16")


class DoesNotFit(ModelError):
    """The ranks' memory cannot hold the model, or there are more ranks than layers; the start stops."""


@dataclass(frozen=True)
class RankCapacity:
    """What a rank can take: memory for weights (None: no limit), and speed in a unit common to all."""

    rank: int
    memory_bytes: int | None = None
    speed: float = 1.0


@dataclass(frozen=True)
class ModelShape:
    """A model's sizes and costs; costs are in any unit, the same for layers and head."""

    model_type: str
    num_layers: int
    layer_bytes: tuple[int, ...]
    embed_bytes: int
    head_bytes: int  # the final norm, and the head or, where tied, the embeddings again
    tied: bool
    kv_bytes_per_token: int  # of one layer
    hidden_size: int
    vocab_size: int
    layer_costs: tuple[float, ...]
    head_cost: float

    @cached_property
    def _bytes_before(self) -> list[int]:
        return [0, *accumulate(self.layer_bytes)]

    @cached_property
    def _costs_before(self) -> list[float]:
        return [0.0, *accumulate(self.layer_costs)]

    def stage_bytes(self, layers: range, *, is_first: bool, is_last: bool) -> int:
        """Return the bytes of weights a stage holds."""
        ends = (self.embed_bytes if is_first else 0) + (self.head_bytes if is_last else 0)
        shared = self.embed_bytes if is_first and is_last and self.tied else 0
        return self._bytes_before[layers.stop] - self._bytes_before[layers.start] + ends - shared

    def stage_cost(self, layers: range, *, is_last: bool) -> float:
        """Return the cost of a token in a stage."""
        own = self._costs_before[layers.stop] - self._costs_before[layers.start]
        return own + (self.head_cost if is_last else 0.0)


def read_shape(folder: Path, *, dequantize: bool = False, float_bytes: int | None = None) -> ModelShape:
    """Read a model's shape from its config and weight headers.

    Args:
        dequantize: count packed weights as unpacked to float_bytes.
        float_bytes: bytes of a float once loaded, and of a KV value; None: as stored, and 2 for KV.

    Raises:
        BadCheckpoint: files are missing or contradict each other.
    """
    config, tensors = read_config(folder), read_tensors(folder)
    sizes = _loaded_bytes(tensors, config, dequantize, float_bytes)
    num_layers, active = int(config["num_hidden_layers"]), _active_share(config)
    layer_bytes, layer_costs = [0] * num_layers, [0.0] * num_layers
    for name, size in sizes.items():
        match = _LAYER.match(name)
        if match and int(match[1]) < num_layers:
            layer_bytes[int(match[1])] += size
            layer_costs[int(match[1])] += size * (active if _EXPERT.search(name) else 1.0)
    if 0 in layer_bytes:
        raise BadCheckpoint(f"{folder} has no weights of layer {layer_bytes.index(0)}")
    tied = is_tied(config, tensors)
    embed_bytes = _sum_under(sizes, "model.embed_tokens.")
    head_bytes = (embed_bytes if tied else _sum_under(sizes, "lm_head.")) + _sum_under(sizes, "model.norm.")
    return ModelShape(
        model_type=config["model_type"],
        num_layers=num_layers,
        layer_bytes=tuple(layer_bytes),
        embed_bytes=embed_bytes,
        head_bytes=head_bytes,
        tied=tied,
        kv_bytes_per_token=_kv_values(config) * (float_bytes or 2),
        hidden_size=config["hidden_size"],
        vocab_size=config["vocab_size"],
        layer_costs=tuple(layer_costs),
        head_cost=HEAD_COST_SHARE * head_bytes,
    )


def split_layers(shape: ModelShape, counts: Sequence[int]) -> tuple[range, ...]:
    """Turn LAYER_SPLIT (layers of rank 0, rank 1, …) into each rank's layers, rank 0 the last.

    Raises:
        DoesNotFit: the counts do not add up to the model's layers, or one is not positive.
    """
    if any(count < 1 for count in counts) or sum(counts) != shape.num_layers:
        wanted = ",".join(str(count) for count in counts)
        raise DoesNotFit(
            f"LAYER_SPLIT={wanted} has {sum(counts)} layers; the model has {shape.num_layers}, "
            "and every rank takes at least one"
        )
    ends = [shape.num_layers - sum(counts[:rank]) for rank in range(len(counts))]
    return tuple(range(end - count, end) for end, count in zip(ends, counts, strict=True))


def plan_layers(shape: ModelShape, capacities: Sequence[RankCapacity]) -> tuple[range, ...]:
    """Give every rank its layers, indexed by rank.

    Raises:
        DoesNotFit: with the bytes that are needed and there.
    """
    ranks = sorted(capacities, key=lambda capacity: capacity.rank)
    assert [capacity.rank for capacity in ranks] == list(range(len(ranks))), "one capacity for every rank"
    assert all(capacity.speed > 0 for capacity in ranks)
    if len(ranks) > shape.num_layers:
        raise DoesNotFit(
            f"{len(ranks)} ranks, but the model has only {shape.num_layers} layers: use fewer ranks"
        )
    times = _StageTimes(shape, ranks[::-1])
    longest = _best_split(times, max, limit=float("inf"))
    if longest is None:
        raise DoesNotFit(_too_large(shape, ranks))
    limit = max(times.of(number, layers) or 0.0 for number, layers in enumerate(longest)) * (1 + 1e-9)
    even = _best_split(times, lambda before, stage: before + stage * stage, limit=limit)
    return tuple(reversed(even or longest))


def weights_hash(folder: Path) -> str:
    """Return a hash of the model's config and weights index, by which ranks tell one model from another."""
    names = ("config.json", INDEX_NAME)
    return hash_files(folder / name for name in names if (folder / name).is_file())


@dataclass(frozen=True)
class _StageTimes:
    """The time of every possible stage; stages are numbered along the model, so stage 0 is the last rank."""

    shape: ModelShape
    ranks: Sequence[RankCapacity]  # by stage

    def of(self, number: int, layers: range) -> float | None:
        """Return a token's time in a stage; None where the rank cannot hold it."""
        is_first, is_last = number == 0, number == len(self.ranks) - 1
        memory = self.ranks[number].memory_bytes
        if memory is not None and self.shape.stage_bytes(layers, is_first=is_first, is_last=is_last) > memory:
            return None
        return self.shape.stage_cost(layers, is_last=is_last) / self.ranks[number].speed


def _best_split(
    times: _StageTimes, combine: Callable[[float, float], float], limit: float
) -> tuple[range, ...] | None:
    """Return the stages with the least combined time, none over the limit; None if none fits."""
    num_stages, num_layers = len(times.ranks), times.shape.num_layers

    @cache
    def best(num: int, end: int) -> tuple[float, tuple[range, ...]] | None:
        """Return the best value and split of layers 0 to `end` over the first `num` stages."""
        if num == 0:
            return (0.0, ()) if end == 0 else None
        found: tuple[float, tuple[range, ...]] | None = None
        for start in range(num - 1, end):
            before, time = best(num - 1, start), times.of(num - 1, range(start, end))
            if before is None or time is None or time > limit:
                continue
            value = combine(before[0], time)
            if found is None or value < found[0]:
                found = value, (*before[1], range(start, end))
        return found

    result = best(num_stages, num_layers)
    return result[1] if result else None


def _too_large(shape: ModelShape, ranks: Sequence[RankCapacity]) -> str:
    need = sum(shape.layer_bytes) + shape.embed_bytes + shape.head_bytes
    if len(ranks) == 1 and shape.tied:
        need -= shape.embed_bytes
    room = ", ".join(
        f"rank {c.rank} {'any' if c.memory_bytes is None else _gigabytes(c.memory_bytes)}" for c in ranks
    )
    return (
        f"the weights ({_gigabytes(need)}) do not fit into the memory for weights ({room}); the largest "
        f"layer has {_gigabytes(max(shape.layer_bytes))}, the embeddings on the last rank "
        f"{_gigabytes(shape.embed_bytes)}, the head on rank 0 {_gigabytes(shape.head_bytes)}"
    )


def _gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB"


def _sum_under(sizes: Mapping[str, int], prefix: str) -> int:
    return sum(size for name, size in sizes.items() if name.startswith(prefix))


def _loaded_bytes(
    tensors: Mapping[str, TensorInfo], config: Mapping[str, Any], dequantize: bool, float_bytes: int | None
) -> dict[str, int]:
    """Return the bytes each tensor takes once loaded; scales and biases are counted with what they unpack."""
    sizes = {}
    for name, info in tensors.items():
        path, _, leaf = name.rpartition(".")
        scales = tensors.get(f"{path}.scales")
        if scales and dequantize and leaf in ("weight", "scales", "biases"):
            values = scales.num_values * _group_size(path, config) if leaf == "weight" else 0
            sizes[name] = values * (float_bytes or 4)
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
    num_experts = config.get("n_routed_experts") or config.get("num_experts")
    return config["num_experts_per_tok"] / num_experts if num_experts else 1.0


def _kv_values(config: Mapping[str, Any]) -> int:
    """Return the values a layer caches for a token: the latent, or keys and values of the KV heads."""
    if config["model_type"] == "deepseek_v2":
        return int(config["kv_lora_rank"] + config["qk_rope_head_dim"])
    num_heads = config["num_attention_heads"]
    head_size = config.get("head_dim") or config["hidden_size"] // num_heads
    return 2 * int(config.get("num_key_value_heads") or num_heads) * int(head_size)
