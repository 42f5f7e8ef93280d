"""Rank 0's log lines about requests: start, end, sweep. Never any text of a request."""

from __future__ import annotations

import logging

from distributed.engine.answers import Answer
from spool import Claim, Result, Swept

# One logger for a request's lines, whichever module writes them.
logger = logging.getLogger("distributed.requests")


def log_start(answer: Answer) -> None:
    """Log that a request starts."""
    request, claim, num_resumed = answer.request, answer.claim, answer.num_resumed_tokens
    fields = {"id": request.id, "client_id": request.client_id, "attempt": claim.attempt}
    logger.info(
        "request %s begins: %d prompt tokens, attempt %d%s",
        request.label,
        answer.sequence.num_prompt_tokens,
        claim.attempt,
        f", continues after {num_resumed} tokens" if num_resumed else "",
        extra={"fields": fields},
    )


def log_request(claim: Claim, result: Result) -> None:
    """Log how a request ended."""
    fields = {
        "id": result.id,
        "client_id": claim.request.client_id,
        "finish_reason": result.finish_reason if result.error is None else result.error["code"],
        "prompt_tokens": result.usage.prompt_tokens,
        "completion_tokens": result.usage.completion_tokens,
        "cached_tokens": result.usage.cached_tokens,
        "attempt": claim.attempt,
        **{name: value for name, value in result.performance.items() if name != "ranks"},
    }
    logger.info(
        "request %s: %s, %d + %d tokens (%d cached), queue %.3f s, first token %.3f s, %.1f tokens/s",
        claim.request.label,
        fields["finish_reason"],
        result.usage.prompt_tokens,
        result.usage.completion_tokens,
        result.usage.cached_tokens,
        fields.get("queue_s", 0.0),
        fields.get("ttft_s", 0.0),
        fields.get("decode_tokens_per_s", 0.0),
        extra={"fields": fields},
    )


def log_sweep(swept: Swept, max_bytes: int) -> None:
    """Log how many results a sweep removed."""
    if not swept.num_results_by_age and not swept.num_results_by_size:
        return
    logger.info(
        "%d results removed by age, %d early for RESULT_RETENTION_MB=%d; %d stay and hold %.1f MiB",
        swept.num_results_by_age,
        swept.num_results_by_size,
        max_bytes // 2**20,
        swept.num_kept_results,
        swept.num_kept_bytes / 2**20,
    )
