"""Replies into numbers: percentiles of each latency, tokens a second, medians over rounds.

Pure. Knows nothing of servers or measures.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.dialects import Reply


@dataclass(frozen=True)
class Percentiles:
    """Of one kind of latency, in seconds; NaN where there was none."""

    p50: float
    p95: float
    p99: float


@dataclass(frozen=True)
class Summary:
    """One load in numbers; failed asks are counted and left out of all else."""

    num_asks: int
    num_failed: int
    wall_s: float
    prompt_tokens: int
    cached_tokens: int  # of the prompts, found in the server's prompt cache
    completion_tokens: int
    tokens_per_s: float  # of all answers together, over the wall time of the load
    ttft_s: Percentiles
    gap_s: Percentiles  # inter-token latency
    end_to_end_s: Percentiles

    @property
    def cached_ratio(self) -> float:
        """Share of the prompts that was found in the server's prompt cache."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else 0.0


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of them lie, interpolated between neighbours; NaN of none."""
    if not values:
        return math.nan
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def percentiles(values: Iterable[float]) -> Percentiles:
    """p50, p95 and p99."""
    taken = list(values)
    return Percentiles(*(percentile(taken, share) for share in (0.50, 0.95, 0.99)))


def median(values: Iterable[float]) -> float:
    """The median; NaN of none, or where one of them is."""
    taken = list(values)
    return statistics.median(taken) if taken and not any(map(math.isnan, taken)) else math.nan


def summarize(replies: Sequence[Reply], wall_s: float) -> Summary:
    """Put the replies of one load into numbers."""
    good = [reply for reply in replies if reply.error is None]
    num_tokens = sum(reply.num_tokens for reply in good)
    return Summary(
        num_asks=len(replies),
        num_failed=len(replies) - len(good),
        wall_s=wall_s,
        prompt_tokens=sum(int(reply.usage.get("prompt_tokens", 0)) for reply in good),
        cached_tokens=sum(reply.num_cached_tokens for reply in good),
        completion_tokens=num_tokens,
        tokens_per_s=num_tokens / wall_s if wall_s > 0 else math.nan,
        ttft_s=percentiles(reply.ttft_s for reply in good),
        gap_s=percentiles(gap for reply in good for gap in reply.gaps_s),
        end_to_end_s=percentiles(reply.end_to_end_s for reply in good),
    )
