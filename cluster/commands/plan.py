"""`plan`: shows which host would get which layers, as a table or JSON; starts and copies nothing.

Without --hosts it asks the hosts of the settings. With --hosts it plans for hosts that need not exist, from
their memory, and from the bandwidth of it if given; they count as Macs, whose GPU may use a part of it.
"""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import asdict

from cluster.errors import ClusterError
from cluster.hosts.host_rooms import HostRoom, mac_gpu_bytes, make_room, measure_rooms
from cluster.hosts.hosts import read_cluster
from cluster.hosts.model_source import ModelSource, read_source_to_plan
from cluster.hosts.plan_figures import PlanFigures, compute_figures
from cluster.hosts.probe import probe
from cluster.hosts.ring_plan import RingLayout, choose_layout, describe, find_short_hosts
from cluster.hosts.ssh import close_connections
from cluster.terminal import Terminal, make_table
from config import Settings
from distributed.planning.capacities import RANK_BYTES

UNITS = {
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "MIB": 1 << 20,
    "GIB": 1 << 30,
    "TIB": 1 << 40,
}
_HOST = re.compile(
    r"(?P<name>[\w.@-]+):(?P<number>\d+(?:\.\d+)?)(?P<unit>[A-Za-z]+)"
    r"(?:@(?P<bandwidth>\d+(?:\.\d+)?)GB/s)?(?::(?P<ranks>\d+))?",
    re.IGNORECASE,
)


class BadHosts(ClusterError):
    """--hosts is malformed."""

    exit_code = 2


def show_plan(
    settings: Settings, terminal: Terminal, *, hosts: str | None, has_gpu: bool, as_json: bool
) -> int:
    """Print the plan; the exit code.

    Raises:
        ClusterError: PlanRefused, ModelUnknown, ModelRefused, BadHosts or HostUnreachable.
    """
    rooms = read_hosts(hosts, has_gpu=has_gpu) if hosts else asyncio.run(_ask_hosts(settings))
    source = read_source_to_plan(settings)
    layout = choose_layout(settings, source, rooms)
    figures = compute_figures(settings, source, layout)
    if as_json:
        sizes = {"is_from_class": source.is_from_class, "figures": asdict(figures)}
        terminal.line(json.dumps(describe(layout) | sizes, indent=2))
        return 0
    for line in (*make_lines(layout, is_asked=not hosts), *figure_lines(settings, source, layout, figures)):
        terminal.line(line)
    return 0


def read_hosts(text: str, *, has_gpu: bool = True) -> tuple[HostRoom, ...]:
    """Parse `mac1:64GB@400GB/s,mac2:16GB@100GB/s:2`: name, memory, its bandwidth, and number of ranks.

    Raises:
        BadHosts: naming the entry and what is allowed.
    """
    rooms = tuple(_read_host(entry.strip(), has_gpu=has_gpu) for entry in text.split(","))
    if len({room.bandwidth is None for room in rooms}) > 1:
        raise BadHosts("--hosts gives the bandwidth of some hosts only: give all of them @…GB/s, or none")
    if len({room.name for room in rooms}) < len(rooms):
        raise BadHosts("--hosts names a host twice: give it more ranks, as in mac1:64GB:2")
    return rooms


def _read_host(entry: str, *, has_gpu: bool) -> HostRoom:
    match = _HOST.fullmatch(entry)
    unit = UNITS.get(match["unit"].upper()) if match else None
    num_ranks = int(match["ranks"] or 1) if match else 0
    bandwidth = float(match["bandwidth"]) if match and match["bandwidth"] else None
    if match is None or unit is None or num_ranks < 1 or bandwidth == 0:
        raise BadHosts(
            f"--hosts: {entry!r} is not name:memory[@bandwidth][:ranks], such as mac1:64GB, mac1:64GiB:2 or "
            f"mac1:64GB@400GB/s (units of memory: {', '.join(('MB', 'GB', 'TB', 'MiB', 'GiB', 'TiB'))})"
        )
    total = int(float(match["number"]) * unit)
    return make_room(
        match["name"],
        num_ranks,
        total_bytes=total,
        free_bytes=total,
        gpu_limit_bytes=mac_gpu_bytes(total) if has_gpu else None,
        speed=bandwidth or 1.0,
        bandwidth=bandwidth,
        has_gpu=has_gpu,
    )


async def _ask_hosts(settings: Settings) -> tuple[HostRoom, ...]:
    cluster = read_cluster(settings)
    try:
        facts = await asyncio.gather(*(probe(host, settings) for host in cluster.hosts))
    finally:
        await close_connections(cluster.remote_hosts, how="stop")
    return measure_rooms(cluster, facts, {})


def make_lines(layout: RingLayout, *, is_asked: bool) -> list[str]:
    """The table by rank, and below it the memory of each host."""
    heading = ("rank", "host", "layers", "weights", "KV reserve", "memory free", "share of the work")
    rooms = {room.name: room for room in layout.rooms}
    rows = [
        (
            str(share.rank),
            share.host,
            f"{share.first_layer}-{share.layers.stop - 1}",
            _gigabytes(share.weights_bytes),
            _gigabytes(share.kv_bytes),
            _gigabytes(rooms[share.host].free_bytes),
            f"{share.work_share:.0%}",
        )
        for share in layout.ranks
    ]
    plural = "rank" if len(layout.ranks) == 1 else "ranks"
    how = "unpacked to float32" if layout.dequantize else "as stored"
    return [
        f"{layout.model}: {sum(layout.counts)} layers on {len(layout.ranks)} {plural}, weights {how}",
        "",
        *make_table([heading, *rows]),
        "",
        *_host_lines(layout),
        *_notes(layout, is_asked=is_asked),
    ]


def _host_lines(layout: RingLayout) -> list[str]:
    lines = []
    for name in dict.fromkeys(room.name for room in layout.rooms):
        places = [room for room in layout.rooms if room.name == name]
        usable = sum(room.usable_bytes for room in places)
        needs = sum(share.weights_bytes + share.kv_bytes for share in layout.ranks_of(name))
        lines.append(
            f"{name}: memory {_gigabytes(places[0].total_bytes)}, free {_gigabytes(places[0].free_bytes)}, "
            f"for weights and KV {_gigabytes(usable)}, needed {_gigabytes(needs)}"
        )
    return lines


def _notes(layout: RingLayout, *, is_asked: bool) -> list[str]:
    """The assumptions of the plan."""
    notes = [
        f"The plan counts {_gigabytes(RANK_BYTES)} for each rank beside weights and KV, and "
        f"{_gigabytes(layout.attention_bytes)} for attention in prompts."
    ]
    if any(room.has_gpu for room in layout.rooms):
        notes.append(
            "A Mac counts with what its GPU may use: 2/3 of the memory up to 36 GB, 3/4 above, unless sysctl "
            "iogpu.wired_limit_mb says otherwise; not proven on a Mac by this project."
        )
    notes += [f"{name}: {text}." for name, text in find_short_hosts(layout).items()]
    if not is_asked:
        fast = "all hosts as equally fast (give each its @…GB/s to count speed)"
        if layout.rooms[0].bandwidth:
            fast = "each host as fast as its memory is read"
        notes.append(f"The hosts were not asked: all memory counts as free, {fast}.")
    return ["", *notes]


def figure_lines(
    settings: Settings, source: ModelSource, layout: RingLayout, figures: PlanFigures
) -> list[str]:
    """The bounds on context and speed, and where the sizes are from."""
    own = " (the model's own length)" if figures.longest_context == figures.model_tokens else ""
    lines = [
        f"KV takes {figures.kv_bytes_per_token} bytes a token in all layers: "
        f"KV_CACHE_RESERVED_MEMORY_MB={settings.kv_cache_reserved_memory_mb} holds {figures.reserve_tokens} "
        f"tokens of all requests together, and one request may have {figures.context_tokens} "
        f"(MAX_SEQUENCE_LENGTH={settings.max_sequence_length}).",
        f"With all memory beside the weights one request could have {figures.longest_context} tokens{own}: "
        f"KV_CACHE_RESERVED_MEMORY_MB={figures.longest_reserve_mib}, "
        f"MAX_SEQUENCE_LENGTH={figures.longest_context}.",
    ]
    if figures.alone_per_second and figures.together_per_second:
        num_ranks = len(layout.ranks)
        many = f", {figures.together_per_second:.3g} for {num_ranks} together, one in each stage"
        speeds = f"{figures.alone_per_second:.3g} tokens/s for one request{many if num_ranks > 1 else ''}"
        lines.append(
            f"A token reads {_gigabytes(figures.token_bytes)} of weights: at most about {speeds}. Time for "
            "arithmetic, KV and network is not counted."
        )
    if source.is_from_class:
        lines.append(f"{layout.model}: sizes from the model's class, not from published files.")
    return ["", *lines]


def _gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB"
