"""Assigns layers to ranks: pure arithmetic over a model's shape and the hosts' memory and speed. No MLX.

Rank 0 has the last layers and the head, rank N-1 the first layers and the embeddings. The slowest stage sets
the pace of a ring, so the plan minimises the longest stage time (cost / speed) within the hosts' memory. Of
such plans it takes those whose largest stage has the fewest layers, and of these the most even one. The same
numbers always give the same plan.

All ranks of a host share its memory. A rank needs its weights and its KV. The KV of all ranks holds the same
number of tokens, which the rank with the most layers limits: it uses the whole reserve, each other rank a
part in proportion to its layers. Of a model with states each rank may use the whole reserve (`KVReserve`).
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from distributed.planning.capacities import MIB, NO_KV, HostCapacity, HostNeed, KVReserve
from distributed.planning.checkpoint import INDEX_NAME, ModelError, hash_files, missing_file
from distributed.planning.model_shape import ModelShape
from distributed.planning.split_search import Splitter


class DoesNotFit(ModelError):
    """The ranks' memory cannot hold the model, or there are more ranks than layers."""


def split_layers(num_layers: int, counts: Sequence[int]) -> tuple[range, ...]:
    """Turn LAYER_SPLIT (number of layers of rank 0, rank 1, …) into each rank's layers.

    Raises:
        DoesNotFit: the counts do not add up to the model's layers, or one is not positive.
    """
    if any(count < 1 for count in counts) or sum(counts) != num_layers:
        wanted = ",".join(str(count) for count in counts)
        raise DoesNotFit(
            f"LAYER_SPLIT={wanted} has {sum(counts)} layers; the model has {num_layers}, "
            "and every rank takes at least one"
        )
    ends = [num_layers - sum(counts[:rank]) for rank in range(len(counts))]
    return tuple(range(end - count, end) for end, count in zip(ends, counts, strict=True))


def plan_layers(shape: ModelShape, hosts: Sequence[HostCapacity], kv: KVReserve = NO_KV) -> tuple[range, ...]:
    """Return every rank's layers, by rank.

    Args:
        hosts: in the order of their ranks; host 0 has rank 0.

    Raises:
        DoesNotFit: names the available and needed bytes of each host.
    """
    assert all(host.speed > 0 and host.num_ranks > 0 for host in hosts)
    num_ranks = sum(host.num_ranks for host in hosts)
    if num_ranks > shape.num_layers:
        raise DoesNotFit(
            f"there are {num_ranks} ranks, but the model has only {shape.num_layers} layers: use fewer ranks"
        )
    split = Splitter(shape, hosts, kv).find()
    if split is None:
        raise DoesNotFit(_too_large(shape, hosts, kv))
    return split


def needs_of(
    shape: ModelShape, hosts: Sequence[HostCapacity], layers: Sequence[range], kv: KVReserve = NO_KV
) -> tuple[HostNeed, ...]:
    """Return every host's memory and its need, with these layers by rank."""
    most = max(len(part) for part in layers)
    needs, rank = [], 0
    for host in hosts:
        own = range(rank, rank + host.num_ranks)
        rank = own.stop
        weights = sum(rank_weights_bytes(shape, layers, one) for one in own)
        held = range(layers[own[-1]].start, layers[own[0]].stop)
        kv_bytes = kv.ranks_bytes(shape, held, most, host.num_ranks)
        needs.append(HostNeed(host.name, host.memory_bytes, weights, kv_bytes))
    return tuple(needs)


def rank_weights_bytes(shape: ModelShape, layers: Sequence[range], rank: int) -> int:
    """Return the bytes of weights of one rank; rank 0 is the last stage."""
    return shape.stage_bytes(layers[rank], is_first=rank == len(layers) - 1, is_last=rank == 0)


def check_fits(
    shape: ModelShape, hosts: Sequence[HostCapacity], layers: Sequence[range], kv: KVReserve = NO_KV
) -> None:
    """Check that every host can hold layers that were not planned here (LAYER_SPLIT).

    Raises:
        DoesNotFit: names the available and needed bytes of each host.
    """
    needs = needs_of(shape, hosts, layers, kv)
    if not all(need.fits for need in needs):
        raise DoesNotFit(f"this split does not fit: {describe_needs(needs)}")


def describe_needs(needs: Sequence[HostNeed]) -> str:
    """Return `mac1 has 12.00 GB and needs 14.10 GB (weights 12.10, KV 2.00); …; in total …`."""
    parts = [
        f"{need.name} has {_gigabytes(need.has_bytes)} and needs {_gigabytes(need.needs_bytes)} "
        f"(weights {need.weights_bytes / 1e9:.2f}, KV {need.kv_bytes / 1e9:.2f})"
        for need in needs
    ]
    has = None if any(need.has_bytes is None for need in needs) else sum(n.has_bytes or 0 for n in needs)
    total = sum(need.needs_bytes for need in needs)
    return "; ".join([*parts, f"in total there are {_gigabytes(has)} and {_gigabytes(total)} are needed"])


def find_fitting_reserve(shape: ModelShape, hosts: Sequence[HostCapacity], kv: KVReserve) -> int:
    """Return the largest KV reserve, in MiB, with which some split fits; 0: none."""

    def is_too_much(num_mib: int) -> bool:
        return not Splitter(shape, hosts, replace(kv, reserve_bytes=num_mib * MIB)).fits()

    return bisect_left(range(1, kv.reserve_bytes // MIB + 1), True, key=is_too_much)


def weights_hash(folder: Path) -> str:
    """Return a hash of the model's config and weights index, which ranks compare.

    Raises:
        BadCheckpoint: the folder has no config.json.
    """
    if not (folder / "config.json").is_file():
        raise missing_file(folder / "config.json")
    names = ("config.json", INDEX_NAME)
    return hash_files(folder / name for name in names if (folder / name).is_file())


def _too_large(shape: ModelShape, hosts: Sequence[HostCapacity], kv: KVReserve) -> str:
    """Describe the split that would fit with the least additional memory a host."""

    def grown(num_mib: int) -> list[HostCapacity]:
        return [
            host
            if host.memory_bytes is None
            else replace(host, memory_bytes=host.memory_bytes + num_mib * MIB)
            for host in hosts
        ]

    num_ranks = sum(host.num_ranks for host in hosts)
    whole = (
        shape.weights_bytes + kv.reserve_bytes * num_ranks - min(0, *(h.memory_bytes or 0 for h in hosts), 0)
    )
    least = bisect_left(
        range(whole // MIB + 1), True, key=lambda num_mib: Splitter(shape, grown(num_mib), kv).fits()
    )
    nearest = Splitter(shape, grown(least), kv).find()
    assert nearest is not None, "with room for the whole model every host holds its part"
    return (
        f"the model does not fit: {describe_needs(needs_of(shape, hosts, nearest, kv))} "
        f"(the largest layer has {_gigabytes(max(shape.layer_bytes))}, the embeddings on the last rank "
        f"{_gigabytes(shape.embed_bytes)}, the head on rank 0 {_gigabytes(shape.head_bytes)})"
    )


def _gigabytes(num_bytes: int | None) -> str:
    return "any" if num_bytes is None else f"{num_bytes / 1e9:.2f} GB"
