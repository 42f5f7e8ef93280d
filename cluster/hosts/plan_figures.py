"""What a planned ring could do: the longest context that its memory holds, and how fast it could decode.

Both are upper bounds by arithmetic. While a ring decodes, a token needs its weights read once, of experts the
active ones, at the bandwidth of each host's memory; time for KV, arithmetic and network comes on top.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, replace

from cluster.hosts.model_source import ModelSource
from cluster.hosts.ring_plan import RingLayout
from config import Settings
from config.context_length import find_model_tokens, limit_context
from distributed.planning.capacities import MIB, HostCapacity, KVReserve, attention_bytes
from distributed.planning.kv_sizes import RankKV, find_largest, most_tokens
from distributed.planning.layer_plan import needs_of

MOST_TOKENS = 10_000_000  # of MAX_SEQUENCE_LENGTH
TOKENS_STEP = 512  # kv_sizes.round_tokens


@dataclass(frozen=True)
class PlanFigures:
    """Bounds of a layout.

    Args:
        kv_bytes_per_token: in all layers.
        reserve_tokens: what the KV reserve holds, of all requests together.
        context_tokens: the most of one request with the settings as they are.
        longest_context: the most of one request with all memory beside the weights; 0: there is none.
        longest_reserve_mib: KV_CACHE_RESERVED_MEMORY_MB for it.
        model_tokens: the model's own length; None: unknown.
        token_bytes: weights read for one token.
        alone_per_second: tokens of a single request; None: a host's bandwidth is unknown.
        together_per_second: tokens of as many requests as there are ranks.
    """

    kv_bytes_per_token: int
    reserve_tokens: int
    context_tokens: int
    longest_context: int
    longest_reserve_mib: int
    model_tokens: int | None
    token_bytes: int
    alone_per_second: float | None
    together_per_second: float | None


def compute_figures(settings: Settings, source: ModelSource, layout: RingLayout) -> PlanFigures:
    """Return the figures of a layout of a model."""
    model_tokens = find_model_tokens(source.config)
    token_bytes, row_tokens = _find_largest(layout)
    reserve_tokens = settings.kv_cache_reserved_memory_mb * MIB // token_bytes
    num_rows = 2 if settings.max_sequence_length == "auto" else 1
    room = max(0, reserve_tokens - num_rows * row_tokens)
    context = limit_context(settings, model_tokens, most_tokens(num_rows, room))
    longest, reserve_mib = _find_longest(settings, source, layout, model_tokens or MOST_TOKENS)
    reads = _bytes_read(layout)
    alone, together = _speeds(layout, reads)
    return PlanFigures(
        kv_bytes_per_token=sum(layout.shape.layer_kv_bytes),
        reserve_tokens=reserve_tokens,
        context_tokens=context.max_tokens,
        longest_context=longest,
        longest_reserve_mib=reserve_mib,
        model_tokens=model_tokens,
        token_bytes=sum(reads.values()),
        alone_per_second=alone,
        together_per_second=together,
    )


def _find_largest(layout: RingLayout) -> tuple[int, int]:
    """Return the bytes of a token where it takes most, and to how many tokens a row's states amount."""
    ranks = []
    for part in layout.ranges:
        kv, states = (
            sizes[part.start : part.stop]
            for sizes in (layout.shape.layer_kv_bytes, layout.shape.layer_state_bytes)
        )
        ranks.append(RankKV(sum(kv), max(kv), sum(states), max(states)))
    return find_largest(ranks)


def _reserve_mib(layout: RingLayout, num_tokens: int) -> int:
    """Return the reserve that one row of so many tokens needs; 0: none."""
    token_bytes, row_tokens = _find_largest(layout)
    return -(-(num_tokens + row_tokens) * token_bytes // MIB) if num_tokens else 0


def _find_longest(settings: Settings, source: ModelSource, layout: RingLayout, most: int) -> tuple[int, int]:
    """Return the longest context that these layers leave room for, at most `most`, and its reserve in MiB."""
    float_bytes = None if layout.rooms[0].has_gpu else 4

    def with_contexts(num_tokens: int) -> RingLayout:
        shape = source.shape(dequantize=layout.dequantize, float_bytes=float_bytes, num_tokens=num_tokens)
        return replace(layout, shape=shape)

    layout = with_contexts(most)
    longest = _most_tokens(settings, layout, most)
    if with_contexts(longest).shape != layout.shape:
        layout = with_contexts(longest)
        longest = _most_tokens(settings, layout, most)
    return longest, _reserve_mib(layout, longest)


def _most_tokens(settings: Settings, layout: RingLayout, most: int) -> int:
    """Return the longest context by the memory of the hosts, at most `most`."""

    def is_too_long(num_steps: int) -> bool:
        num_tokens = num_steps * TOKENS_STEP
        attention = attention_bytes(settings, layout.shape, num_tokens) if layout.rooms[0].has_gpu else 0
        less = attention - layout.attention_bytes
        hosts = [
            HostCapacity(room.name, room.num_ranks, room.usable_bytes - room.num_ranks * less)
            for room in layout.rooms
        ]
        kv = KVReserve(_reserve_mib(layout, num_tokens) * MIB)
        return not all(need.fits for need in needs_of(layout.shape, hosts, layout.ranges, kv))

    steps = range(1, -(-most // TOKENS_STEP) + 1)
    return min(most, TOKENS_STEP * bisect_left(steps, True, key=is_too_long))


def _bytes_read(layout: RingLayout) -> dict[str, int]:
    """Return by host the bytes of weights that it reads for one token."""
    reads = dict.fromkeys((share.host for share in layout.ranks), 0)
    for share in layout.ranks:
        reads[share.host] += round(layout.shape.stage_cost(share.layers, is_last=False))
    reads[layout.ranks[0].host] += layout.shape.head_bytes
    return reads


def _speeds(layout: RingLayout, reads: dict[str, int]) -> tuple[float | None, float | None]:
    """Return tokens per second of one request, and of one a rank."""
    bandwidths = {room.name: room.bandwidth for room in layout.rooms if room.bandwidth}
    if bandwidths.keys() != reads.keys():
        return None, None
    seconds = [num_bytes / (bandwidths[name] * 1e9) for name, num_bytes in reads.items()]
    return 1 / sum(seconds), 1 / max(seconds)
