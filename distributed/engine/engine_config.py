"""The limits of the loop and the scheduler, from the settings and the machine: chunks, rows, KV, waits.

Knows nothing of the ring, the spool or how a rank starts.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from config import Settings
from config.context_length import limit_context, read_model_tokens
from distributed.backends.backend import Backend
from distributed.engine.chunks import MIN_PACED_TOKENS
from distributed.engine.drafting import PromptLookup
from distributed.engine.engine import EngineLimits
from distributed.engine.scheduler import Scheduler, SchedulerLimits
from distributed.engine.slots import SlotLimits
from distributed.engine.status import RingStatus
from distributed.planning.capacities import longest_context, max_chunk_scores
from distributed.planning.checkpoint import read_config
from distributed.planning.families.family import count_experts
from distributed.planning.kv_sizes import RankKV, find_largest, most_tokens, round_rows
from distributed.planning.model_shape import layer_kv_values, layer_state_values, settle_windows

logger = logging.getLogger(__name__)

# A chunk takes at most this share of STEP_TIMEOUT in a stage, as far as earlier ones tell.
CHUNK_SHARE = 0.4
MIN_MIXTURE_CHUNK_TOKENS = 64  # also beside answers that wait: a step reads about every expert
# So few rows are one decode group where the stage that works may use the cores of those that wait: every
# group pays for its own read of the weights. More rows lose by it where others use the cores, too.
MAX_GATHERED = 8


def chunk_tokens(settings: Settings, backend: Backend) -> int:
    """Return a prefill chunk's tokens, as set or as the backend has it."""
    if settings.prefill_chunk_tokens != "auto":
        return int(settings.prefill_chunk_tokens)
    return backend.chunk_tokens(read_config(settings.model_dir))


def make_engine_limits(settings: Settings) -> EngineLimits:
    """Return the limits of rank 0's loop."""
    return EngineLimits(
        poll_interval_seconds=settings.poll_interval,
        step_timeout_seconds=settings.step_timeout,
        shutdown_timeout_seconds=settings.shutdown_timeout,
        retention_seconds=settings.result_retention_hours * 3600,
        retention_bytes=settings.result_retention_mb * 2**20,
        keep_warm_seconds=settings.keep_warm_minutes * 60,
    )


def make_scheduler(settings: Settings, status: RingStatus, chunk: int, thread_gain: float) -> Scheduler:
    """Return the scheduler of a ring whose ranks are ready; put the KV limit and the context in the status.

    Args:
        chunk: see `chunk_tokens`.
        thread_gain: how many times as many threads a stage has while the others have no work.
    """
    is_auto = settings.microbatches == "auto"
    num_tables = len(status.ranks) if is_auto else int(settings.microbatches)
    config = read_config(settings.model_dir)
    config = settle_windows(settings.model_name, config, longest_context(settings, config))
    max_kv_tokens, row_tokens = _limit_kv(settings, status, config)
    status.kv["max_tokens"] = max_kv_tokens
    # With `auto` a request of full length leaves room for a second one.
    num_rows = 2 if settings.max_sequence_length == "auto" else 1
    room = max(0, max_kv_tokens - round_rows(num_rows) * row_tokens)
    status.context = limit_context(
        settings, read_model_tokens(settings.model_dir), most_tokens(num_rows, room)
    )
    max_kept = settings.kv_cache_max_size
    if settings.max_sequence_length == "auto" and max_kept:  # for agents, whose prompts grow turn by turn
        max_kept = max(max_kept, num_rows * status.context.max_tokens)
    has_experts = count_experts(config) > 0
    slots = SlotLimits(
        num_tables=num_tables,
        max_rows=settings.max_rows_per_microbatch,
        max_kv_tokens=max_kv_tokens,
        max_kept_tokens=max_kept,
        row_tokens=row_tokens,
        window=config["sliding_window"] if config.get("keeps_windows") else 0,
    )
    limits = SchedulerLimits(
        max_in_flight=num_tables + 1,
        max_yielding_in_flight=max(num_tables, len(status.ranks)),
        max_chunk_tokens=chunk,
        slots=slots,
        paces_chunks=settings.prefill_chunk_tokens == "auto",
        max_chunk_scores=max_chunk_scores(settings),
        max_chunk_us=settings.step_timeout * 1e6 * CHUNK_SHARE,
        min_paced_tokens=MIN_MIXTURE_CHUNK_TOKENS if has_experts else MIN_PACED_TOKENS,
        # Stages with cores of their own cannot gain by one group, which is at least as much work, one by one.
        max_gathered=MAX_GATHERED if is_auto and thread_gain > 1 else 0,
    )
    has_drafts = settings.speculation == "prompt-lookup"
    if has_drafts and slots.has_states:
        kept = "windows" if config["keeps_windows"] else "states"
        logger.info("SPECULATION is off: the model's layers keep %s, which cannot be rolled back", kept)
    return Scheduler(limits, PromptLookup() if has_drafts and not slots.has_states else None)


def _limit_kv(settings: Settings, status: RingStatus, config: Mapping[str, Any]) -> tuple[int, int]:
    """Return the most tokens of KV, and to how many of them the states of one row amount."""
    values = layer_kv_values(settings.model_name, config)
    states = [sum(each) for each in layer_state_values(settings.model_name, config)]
    ranks = []
    for info in status.ranks:
        own = slice(info.first_layer, info.first_layer + info.num_layers)
        largest = info.kv_bytes_per_token * max(values[own]) // max(1, sum(values[own]))
        largest_state = info.state_bytes_per_row * max(states[own]) // max(1, sum(states[own]))
        ranks.append(RankKV(info.kv_bytes_per_token, largest, info.state_bytes_per_row, largest_state))
    token_bytes, row_tokens = find_largest(ranks)
    return settings.kv_cache_reserved_memory_mb * 2**20 // token_bytes, row_tokens
