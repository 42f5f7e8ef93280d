"""Latency histograms of this process's answers: first token, queue, whole answer, between tokens.

They use the times that rank 0 wrote into each result, so every front door measures the same. The time between
tokens is each answer's mean. Knows results; nothing of HTTP.
"""

from collections.abc import Iterable

from prometheus_client import Histogram, Metric
from prometheus_client.registry import Collector

from spool import Result

SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5, 5)
LONG = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Latencies(Collector):
    """Observes each answer once; Prometheus collects at a scrape."""

    def __init__(self) -> None:
        self._ttft = _histogram("ring_time_to_first_token_seconds", "From accepted to the first token.", LONG)
        self._between = _histogram("ring_inter_token_latency_seconds", "Mean time between tokens.", SHORT)
        self._whole = _histogram("ring_e2e_request_latency_seconds", "From accepted to the last token.", LONG)
        self._queue = _histogram("ring_request_queue_time_seconds", "From accepted to claimed.", LONG)

    def observe(self, result: Result) -> None:
        """Count a complete answer; cancelled and failed ones do not measure speed."""
        if result.finish_reason not in ("stop", "length"):
            return
        times = result.performance
        for histogram, name in ((self._ttft, "ttft_s"), (self._whole, "total_s"), (self._queue, "queue_s")):
            seconds = _seconds(times.get(name))
            if seconds is not None:
                histogram.observe(seconds)
        first, whole = _seconds(times.get("ttft_s")), _seconds(times.get("total_s"))
        num_gaps = result.usage.completion_tokens - 1
        if first is not None and whole is not None and num_gaps > 0:
            self._between.observe(max(0.0, whole - first) / num_gaps)

    def collect(self) -> Iterable[Metric]:
        """Yield the four families."""
        for histogram in (self._ttft, self._between, self._whole, self._queue):
            yield from histogram.collect()


def _histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
    return Histogram(name, text, buckets=buckets, registry=None)


def _seconds(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None
