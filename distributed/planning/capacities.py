"""Hosts as data: memory, speed, the reserve for KV, and the needs of a plan. No MLX."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from config import Settings
from config.context_length import MOST_AUTO_TOKENS, find_model_tokens, limit_context
from distributed.planning.kv_sizes import padded_tokens, round_rows
from distributed.planning.model_shape import ModelShape

MIB = 1 << 20
# Beside weights, KV and attention: interpreter, MLX and activations, twice the measured need of a rank.
RANK_BYTES = 512 * MIB
# A chunk's attention scores, tokens x context for each head, are in memory at once: beyond this context
# chunks shrink, in steps of MIN_SCORED_TOKENS and never below that.
FULL_CHUNK_CONTEXT = 4096
FULL_CHUNK_TOKENS = 512
MIN_SCORED_TOKENS = 64
# How many arrays of that size a layer has in memory: scores, mask, probabilities, and what a GPU still reads.
NUM_SCORE_ARRAYS = 4


@dataclass(frozen=True)
class HostCapacity:
    """The capacity of a host.

    Args:
        memory_bytes: for weights and KV of all its ranks together; None: no limit.
        speed: of each of its ranks, in a unit common to all hosts.
    """

    name: str = "this machine"
    num_ranks: int = 1
    memory_bytes: int | None = None
    speed: float = 1.0


@dataclass(frozen=True)
class KVReserve:
    """Memory for KV: `reserve_bytes` on the rank with the most layers, for at most `max_tokens` tokens.

    Where layers differ in their KV, or have states of rows, at most `max_rows` of them, each rank may use all
    of the reserve; rows and tokens share it as they come."""

    reserve_bytes: int = 0
    max_tokens: int | None = None
    max_rows: int | None = None

    def num_tokens(self, shape: ModelShape, most_layers: int) -> int:
        """Return how many tokens fit if the largest stage has `most_layers`."""
        tokens = self.reserve_bytes // max(1, most_layers * shape.kv_bytes_per_token)
        return tokens if self.max_tokens is None else min(tokens, self.max_tokens)

    def layer_bytes(self, shape: ModelShape, most_layers: int) -> int:
        """Return the bytes of KV of one layer if the largest stage has `most_layers`."""
        return self.num_tokens(shape, most_layers) * shape.kv_bytes_per_token

    def ranks_bytes(self, shape: ModelShape, layers: range, most_layers: int, num_ranks: int = 1) -> int:
        """Return the most that ranks with these layers together need, if the largest has `most_layers`."""
        if not shape.has_unlike_layers:
            return len(layers) * self.layer_bytes(shape, most_layers)
        most = num_ranks * self.reserve_bytes
        if self.max_tokens is None or self.max_rows is None:
            return most
        return min(most, shape.kv_bytes(layers, self.max_tokens, self.max_rows))


@dataclass(frozen=True)
class HostNeed:
    """The memory of a host and the need of a plan there, in bytes."""

    name: str
    has_bytes: int | None
    weights_bytes: int
    kv_bytes: int

    @property
    def needs_bytes(self) -> int:
        return self.weights_bytes + self.kv_bytes

    @property
    def fits(self) -> bool:
        return self.has_bytes is None or self.needs_bytes <= self.has_bytes


NO_KV = KVReserve()


def max_chunk_scores(settings: Settings) -> int:
    """Return the most tokens x context of a prefill chunk."""
    chunk = settings.prefill_chunk_tokens
    return max(FULL_CHUNK_TOKENS, 0 if chunk == "auto" else int(chunk)) * FULL_CHUNK_CONTEXT


def attention_bytes(settings: Settings, shape: ModelShape, num_tokens: int | None = None) -> int:
    """Return what attention takes on a rank beside weights and KV, at a context; None: the longest one."""
    num_tokens = num_tokens or _longest_context(settings)
    scores = max(max_chunk_scores(settings), MIN_SCORED_TOKENS * num_tokens)
    return NUM_SCORE_ARRAYS * scores * shape.score_bytes


def longest_context(settings: Settings, config: Mapping[str, Any]) -> int:
    """Return the longest context by the settings and a model's config."""
    return limit_context(settings, find_model_tokens(config)).max_tokens


def make_reserve(settings: Settings, ring_size: int) -> KVReserve:
    """Return KV_CACHE_RESERVED_MEMORY_MB, and the most tokens that the tables can ever hold."""
    num_tables = ring_size if settings.microbatches == "auto" else int(settings.microbatches)
    max_rows = settings.max_rows_per_microbatch
    most = num_tables * padded_tokens(max_rows, _longest_context(settings))
    return KVReserve(settings.kv_cache_reserved_memory_mb * MIB, most, num_tables * round_rows(max_rows))


def _longest_context(settings: Settings) -> int:
    longest = settings.max_sequence_length
    return MOST_AUTO_TOKENS if longest == "auto" else longest
