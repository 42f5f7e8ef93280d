"""Plans which host gets which layers: the hosts' facts go in, a layout of the ring comes out.

`distributed/planning/layer_plan.py: plan_layers` does the arithmetic, as for a ring on one machine;
host_rooms.py counts the memory. The supervisor plans once and sends the plan to the ranks, because files are
copied for it. STATE_DIR/run/layout.json keeps the last layout, which is used again while it is still good, so
that small changes of free memory move no layer. Starts nothing and asks no host.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from cluster.hosts.host_rooms import HostRoom, PlanRefused, measure_rooms
from cluster.hosts.hosts import Cluster
from cluster.hosts.model_source import ModelSource, read_source
from cluster.hosts.probe import HostFacts
from cluster.terminal import format_bytes
from cluster.threads import run_beside
from config import Settings
from config.run_files import read_json, write_json
from distributed.planning.capacities import (
    RANK_BYTES,
    HostCapacity,
    KVReserve,
    attention_bytes,
    longest_context,
    make_reserve,
)
from distributed.planning.layer_plan import (
    DoesNotFit,
    check_fits,
    find_fitting_reserve,
    needs_of,
    plan_layers,
    rank_weights_bytes,
    split_layers,
)
from distributed.planning.model_shape import ModelShape

LAYOUT_NAME = "layout.json"
MIB = 1 << 20
# A CPU is slow with packed weights: they are unpacked to float32 if that takes no more of the free memory.
MAX_DEQUANTIZED_SHARE = 0.6
# An old layout is kept while its longest stage is no more than this much slower than the best one's.
MAX_KEPT_SLOWNESS = 1.1


@dataclass(frozen=True)
class RankShare:
    """The layers of one rank, and the memory they take."""

    rank: int
    host: str
    first_layer: int
    num_layers: int
    weights_bytes: int
    kv_bytes: int
    work_share: float  # of a token's time in all stages

    @property
    def layers(self) -> range:
        return range(self.first_layer, self.first_layer + self.num_layers)


@dataclass(frozen=True)
class RingLayout:
    """The plan of a ring: the layers of each rank, by which files are copied."""

    model: str
    dequantize: bool
    rooms: tuple[HostRoom, ...]
    ranks: tuple[RankShare, ...]
    shape: ModelShape
    attention_bytes: int = 0  # of each rank beside weights and KV; what rooms can use is without it

    @property
    def counts(self) -> tuple[int, ...]:
        """Layers by rank, as in LAYER_SPLIT."""
        return tuple(share.num_layers for share in self.ranks)

    @property
    def ranges(self) -> tuple[range, ...]:
        """Every rank's layers, by rank."""
        return tuple(share.layers for share in self.ranks)

    def ranks_of(self, host: str) -> tuple[RankShare, ...]:
        """The shares of a host's ranks."""
        return tuple(share for share in self.ranks if share.host == host)


async def plan_ring(
    settings: Settings, cluster: Cluster, facts: Sequence[HostFacts], held_bytes: Mapping[str, int]
) -> RingLayout:
    """Plan the ring of a cluster, and keep the layout for the next start.

    Args:
        facts: of each host of the cluster, in order.
        held_bytes: see `measure_rooms`.

    Raises:
        PlanRefused: with the memory that every host has and needs.
        ModelUnknown: the model is not here, and the Hub does not answer.
        ModelRefused: it cannot be served.
    """
    rooms = measure_rooms(cluster, facts, held_bytes)
    source = await run_beside(read_source, settings)
    layout = choose_layout(settings, source, rooms)
    with contextlib.suppress(OSError):  # on a full disk the next start plans afresh
        write_json(settings.run_dir / LAYOUT_NAME, {"key": _key(settings, layout), "counts": layout.counts})
    return layout


def choose_layout(settings: Settings, source: ModelSource, rooms: Sequence[HostRoom]) -> RingLayout:
    """Plan for these rooms; keep the last layout if it was made for the same hosts and model and still fits.

    Raises:
        PlanRefused: with the memory that every host has and needs.
    """
    num_gpus = sum(room.has_gpu for room in rooms)
    if 0 < num_gpus < len(rooms):
        without = next(room.name for room in rooms if not room.has_gpu)
        raise PlanRefused(
            f"{without} has no GPU and others have one: they compute in different precision, so they cannot "
            "form one ring; leave one kind out of WORKER_HOSTS"
        )
    kv = make_reserve(settings, sum(room.num_ranks for room in rooms))
    num_tokens = longest_context(settings, source.config)
    if not num_gpus:
        unpacked = source.shape(dequantize=True, float_bytes=4, num_tokens=num_tokens)
        if unpacked.weights_bytes <= MAX_DEQUANTIZED_SHARE * sum(
            room.free_bytes for room in _machines(rooms)
        ):
            try:
                return _lay_out(settings, source, unpacked, rooms, kv, dequantize=True)
            except PlanRefused:
                if not source.is_packed:
                    raise
    packed = source.shape(dequantize=False, float_bytes=None if num_gpus else 4, num_tokens=num_tokens)
    return _lay_out(settings, source, packed, rooms, kv, dequantize=False)


def find_short_hosts(layout: RingLayout) -> dict[str, str]:
    """By host, a sentence for each Mac that has less free memory now than its ranks will take."""
    found = {}
    for room in _machines([room for room in layout.rooms if room.has_gpu]):
        shares = layout.ranks_of(room.name)
        beside = RANK_BYTES + layout.attention_bytes
        needed = sum(share.weights_bytes + share.kv_bytes + beside for share in shares)
        if needed > room.free_bytes:
            found[room.name] = (
                f"its ranks will take {format_bytes(needed)}, {format_bytes(room.free_bytes)} are free now: "
                "macOS compresses or swaps out other programs' memory; close some if the Mac becomes slow"
            )
    return found


def _machines(rooms: Sequence[HostRoom]) -> list[HostRoom]:
    """One room for each machine."""
    return list({room.name: room for room in rooms}.values())


def _lay_out(
    settings: Settings,
    source: ModelSource,
    shape: ModelShape,
    rooms: Sequence[HostRoom],
    kv: KVReserve,
    *,
    dequantize: bool,
) -> RingLayout:
    attention = attention_bytes(settings, shape) if rooms[0].has_gpu else 0
    rooms = [replace(room, usable_bytes=room.usable_bytes - room.num_ranks * attention) for room in rooms]
    hosts = [HostCapacity(room.name, room.num_ranks, room.usable_bytes, room.speed) for room in rooms]
    try:
        if settings.layer_counts is not None:
            layers = split_layers(shape.num_layers, settings.layer_counts)
            check_fits(shape, hosts, layers, kv)
        else:
            layers = plan_layers(shape, hosts, kv)
    except DoesNotFit as error:
        raise PlanRefused(f"{source.name}: {error}. {_advise(shape, hosts, kv, rooms)}") from None
    layout = _make_layout(source.name, shape, rooms, layers, kv, dequantize=dequantize)
    layout = replace(layout, attention_bytes=attention)
    kept = _read_kept(settings, layout)
    if kept is None or settings.layer_counts is not None:
        return layout
    old_layers = split_layers(shape.num_layers, kept)
    old = _make_layout(source.name, shape, rooms, old_layers, kv, dequantize=dequantize)
    old = replace(old, attention_bytes=attention)
    does_fit = all(need.fits for need in needs_of(shape, hosts, old_layers, kv))
    is_good = _longest(shape, old) <= MAX_KEPT_SLOWNESS * _longest(shape, layout)
    return old if does_fit and is_good else layout


def _make_layout(
    name: str,
    shape: ModelShape,
    rooms: Sequence[HostRoom],
    layers: Sequence[range],
    kv: KVReserve,
    *,
    dequantize: bool,
) -> RingLayout:
    most = max(len(part) for part in layers)
    places = [room for room in rooms for _ in range(room.num_ranks)]
    costs = [shape.stage_cost(part, is_last=rank == 0) for rank, part in enumerate(layers)]
    shares = [
        RankShare(
            rank=rank,
            host=places[rank].name,
            first_layer=part.start,
            num_layers=len(part),
            weights_bytes=rank_weights_bytes(shape, layers, rank),
            kv_bytes=kv.ranks_bytes(shape, part, most),
            work_share=costs[rank] / sum(costs),
        )
        for rank, part in enumerate(layers)
    ]
    return RingLayout(name, dequantize, tuple(rooms), tuple(shares), shape)


def _longest(shape: ModelShape, layout: RingLayout) -> float:
    speeds = [room.speed for room in layout.rooms for _ in range(room.num_ranks)]
    return max(
        shape.stage_cost(part, is_last=rank == 0) / speeds[rank] for rank, part in enumerate(layout.ranges)
    )


def _advise(
    shape: ModelShape, hosts: Sequence[HostCapacity], kv: KVReserve, rooms: Sequence[HostRoom]
) -> str:
    """What to change when the model does not fit."""
    fitting = find_fitting_reserve(shape, hosts, kv)
    if fitting:
        return (
            f"It fits with KV_CACHE_RESERVED_MEMORY_MB={fitting} (now {kv.reserve_bytes // MIB}), "
            "or with more hosts in WORKER_HOSTS"
        )
    more = "let the GPU use more (sysctl iogpu.wired_limit_mb)" if rooms[0].has_gpu else "free memory there"
    return f"Choose a smaller model, {more}, or add hosts to WORKER_HOSTS"


def _key(settings: Settings, layout: RingLayout) -> str:
    """A mark of all that a layout depends on, except free memory."""
    places = [(room.name, room.num_ranks, room.speed, room.total_bytes) for room in layout.rooms]
    parts = [layout.model, layout.dequantize, sum(layout.counts), places, settings.layer_split]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _read_kept(settings: Settings, layout: RingLayout) -> tuple[int, ...] | None:
    """The counts of the last layout, if it was made for the same key."""
    kept = read_json(settings.run_dir / LAYOUT_NAME)
    if not kept or kept.get("key") != _key(settings, layout):
        return None
    return tuple(int(count) for count in kept["counts"])


def describe(layout: RingLayout) -> dict[str, Any]:
    """The layout as JSON."""
    return {
        "model": layout.model,
        "dequantize": layout.dequantize,
        "layer_split": ",".join(str(count) for count in layout.counts),
        "hosts": [asdict(room) for room in layout.rooms],
        "ranks": [asdict(share) | {"last_layer": share.layers.stop - 1} for share in layout.ranks],
    }
