"""GET /metrics: Prometheus text from rank 0's status, this process's histograms and refusals, and batches.

Names use vLLM's suffixes with our own prefix. Knows the status files; counts nothing itself.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from config.run_files import mapping, number
from frontdoor import VERSION
from frontdoor.encoding import in_worker
from frontdoor.ring_status import RingStatus
from frontdoor.state import FrontDoor, front_door
from spool import SpoolUnavailable
from spool.batches import BatchView

KEY_COUNTS = {
    "requests": "Finished requests of a key.",
    "prompt_tokens": "Prompt tokens of a key's finished requests.",
    "generation_tokens": "Tokens generated for a key's finished requests.",
}

router = APIRouter()


@router.get("/metrics")
async def metrics(http: HttpRequest) -> Response:
    """Report to Prometheus."""
    registry = CollectorRegistry()
    front = front_door(http)
    registry.register(RingCollector(front.ring_status))
    if front.keys.are_required:
        registry.register(KeyCollector(front))
    registry.register(front.latencies)
    with suppress(SpoolUnavailable):  # the other figures say more about a failing disk
        registry.register(BatchCollector(await in_worker(front, front.batches.list_all)))
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


class RingCollector(Collector):
    """Turns the status files into metric families."""

    def __init__(self, status: RingStatus) -> None:
        self._status = status

    def collect(self) -> Iterable[Metric]:
        """Yield every family; without a status of rank 0, only the general ones."""
        ring, supervisor = self._status.ring(), self._status.supervisor()
        is_ready = self._status.readiness().is_ready
        yield _gauge("ring_ready", "Whether the ring makes progress.", float(is_ready))
        yield _counter(
            "ring_restarts", "Restarts of the ring or of the front door.", supervisor.get("restarts")
        )
        build = GaugeMetricFamily("ring_build_info", "What is running.", labels=["version", "model"])
        build.add_metric([VERSION, str(ring.get("model", ""))], 1)
        yield build
        if ring:
            yield from _of_queue(ring)
            yield from _of_totals(mapping(ring.get("totals")))
            yield from _of_results(mapping(ring.get("results")))
            yield from _of_ranks(ring, is_ready=is_ready)


class KeyCollector(Collector):
    """Turns the counts by owner into metric families, under the keys' names."""

    def __init__(self, front: FrontDoor) -> None:
        self._used = mapping(front.ring_status.ring().get("owners"))
        self._num_rejected = front.key_limits.num_rejected
        self._labels = front.keys.labels()

    def collect(self) -> Iterable[Metric]:
        """Yield every family; a key without a name, or that was revoked, is its owner."""
        for member, text in KEY_COUNTS.items():
            family = CounterMetricFamily(f"ring_key_{member}", text, labels=["key"])
            for owner in {**self._labels, **self._used}:
                count = number(mapping(self._used.get(owner)).get(member))
                family.add_metric([self._labels.get(owner, owner)], count)
            yield family
        rejected = CounterMetricFamily(
            "ring_key_rejected", "Requests over a limit of their key.", labels=["key", "reason"]
        )
        for (owner, reason), count in self._num_rejected.items():
            rejected.add_metric([self._labels.get(owner, owner), reason], count)
        yield rejected


def _of_queue(ring: Mapping[str, Any]) -> Iterator[Metric]:
    queue, kv = mapping(ring.get("queue")), mapping(ring.get("kv"))
    yield _gauge("ring_num_requests_running", "Requests being generated.", queue.get("num_running"))
    yield _gauge("ring_num_requests_waiting", "Requests waiting in the spool.", queue.get("num_waiting"))
    yield _gauge(
        "ring_queue_oldest_seconds", "Age of the oldest waiting request.", queue.get("oldest_wait_s")
    )
    share = number(kv.get("num_tokens")) / max(1.0, number(kv.get("max_tokens")))
    yield _gauge("ring_kv_cache_usage_perc", "Used share of the KV cache, 0 to 1.", share)
    yield _counter(
        "ring_num_preemptions", "Running requests put back for lack of KV.", kv.get("num_preemptions")
    )


def _of_totals(totals: Mapping[str, Any]) -> Iterator[Metric]:
    yield _counter("ring_prompt_tokens", "Prompt tokens of finished prefills.", totals.get("prompt_tokens"))
    yield _counter("ring_generation_tokens", "Tokens generated.", totals.get("generation_tokens"))
    yield _counter(
        "ring_prefix_cache_hits", "Prompt tokens found in the prefix cache.", totals.get("cached_tokens")
    )
    finished = CounterMetricFamily(
        "ring_request_success", "Finished requests by reason.", labels=["finished_reason"]
    )
    for reason, count in mapping(totals.get("requests")).items():
        finished.add_metric([str(reason)], number(count))
    yield finished


def _of_results(results: Mapping[str, Any]) -> Iterator[Metric]:
    yield _gauge(
        "ring_results_bytes", "Disk space of finished requests at the last sweep.", results.get("num_bytes")
    )
    removed = CounterMetricFamily(
        "ring_results_removed", "Results removed by age, or early by size.", labels=["reason"]
    )
    for reason in ("age", "size"):
        removed.add_metric([reason], number(results.get(f"removed_by_{reason}")))
    yield removed


def _of_ranks(ring: Mapping[str, Any], *, is_ready: bool) -> Iterator[Metric]:
    up = GaugeMetricFamily("ring_rank_up", "Whether the rank takes part.", labels=["rank", "host"])
    busy = GaugeMetricFamily("ring_rank_busy_ratio", "Share of time at work, 0 to 1.", labels=["rank"])
    layers = GaugeMetricFamily("ring_rank_layers", "Layers of the rank.", labels=["rank"])
    memory = GaugeMetricFamily("ring_rank_memory_bytes", "Memory of the rank.", labels=["rank", "kind"])
    for entry in ring.get("ranks") or []:
        rank = str(entry.get("rank"))
        up.add_metric([rank, str(entry.get("host", ""))], float(is_ready))
        busy.add_metric([rank], number(entry.get("busy_ratio")))
        layers.add_metric([rank], number(entry.get("num_layers")))
        memory.add_metric([rank, "weights"], number(entry.get("weights_bytes")))
        memory.add_metric([rank, "process"], number(entry.get("memory_bytes")))
    yield from (up, busy, layers, memory)


class BatchCollector(Collector):
    """Counts the batches that are on the disk, and the lines of those that have not ended."""

    def __init__(self, views: Sequence[BatchView]) -> None:
        self._views = views

    def collect(self) -> Iterable[Metric]:
        batches = GaugeMetricFamily("ring_batches", "Batches by status.", labels=["status"])
        for status, count in Counter(view.status for view in self._views).items():
            batches.add_metric([status], count)
        yield batches
        lines = GaugeMetricFamily(
            "ring_batch_lines", "Lines of batches that have not ended, by state.", labels=["state"]
        )
        states = [view.state for view in self._views if not view.state.has_ended]
        num_completed, num_failed = (
            sum(getattr(state, name) for state in states) for name in ("num_completed", "num_failed")
        )
        num_open = sum(state.num_total for state in states) - num_completed - num_failed
        for name, count in (("completed", num_completed), ("failed", num_failed), ("open", num_open)):
            lines.add_metric([name], count)
        yield lines


def _gauge(name: str, text: str, value: object) -> Metric:
    return GaugeMetricFamily(name, text, value=number(value))


def _counter(name: str, text: str, value: object) -> Metric:
    return CounterMetricFamily(name, text, value=number(value))
