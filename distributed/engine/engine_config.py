"""The limits of the loop and the scheduler, from the settings and the machine: chunks, rows, KV, waits.

Knows nothing of the ring, the spool or how a rank starts.
"""

from __future__ import annotations

from config import Settings
from config.context_length import limit_context, read_model_tokens
from distributed.backends.backend import Backend
from distributed.engine.chunks import MIN_PACED_TOKENS
from distributed.engine.drafting import PromptLookup
from distributed.engine.engine import EngineLimits
from distributed.engine.scheduler import Scheduler, SchedulerLimits
from distributed.engine.slots import SlotLimits
from distributed.engine.status import RingStatus
from distributed.planning.capacities import max_chunk_scores
from distributed.planning.checkpoint import read_config
from distributed.planning.family import count_experts
from distributed.planning.kv_sizes import most_tokens

# A chunk takes at most this share of STEP_TIMEOUT in a stage, as far as earlier ones tell.
CHUNK_SHARE = 0.2
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
    # While a table is resized, one of its layers is in memory twice.
    largest = max(info.kv_bytes_per_token * (1 + 1 / info.num_layers) for info in status.ranks)
    max_kv_tokens = int(settings.kv_cache_reserved_memory_mb * 2**20 / max(1, largest))
    status.kv["max_tokens"] = max_kv_tokens
    # With `auto` a request of full length leaves room for a second one.
    num_rows = 2 if settings.max_sequence_length == "auto" else 1
    status.context = limit_context(
        settings, read_model_tokens(settings.model_dir), most_tokens(num_rows, max_kv_tokens)
    )
    max_kept = settings.kv_cache_max_size
    if settings.max_sequence_length == "auto" and max_kept:  # for agents, whose prompts grow turn by turn
        max_kept = max(max_kept, num_rows * status.context.max_tokens)
    has_experts = count_experts(read_config(settings.model_dir)) > 0
    slots = SlotLimits(
        num_tables=num_tables,
        max_rows=settings.max_rows_per_microbatch,
        max_kv_tokens=max_kv_tokens,
        max_kept_tokens=max_kept,
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
    return Scheduler(limits, PromptLookup() if settings.speculation == "prompt-lookup" else None)
