"""A record of steps (distributed/engine/step_trace.py) on one clock, as spans, shares and a Chrome timeline.
Pure.

Every rank takes its times on its own monotonic clock. Ranks of one host share it. The clocks of other hosts
follow from the lap: a microbatch leaves rank 0, passes N-1, …, 1 and comes back, and no stage starts before
the one before it has ended. For each hop, the least (start there - end here) over all steps is the least
time of the hop plus the difference of the two clocks; around the lap the differences cancel, so the sum of
these is the sum of the least times. That sum, less the hops within a host, is shared out evenly among the
hops between hosts; the rest of each is its difference of clocks. The error is at most that sum: little on a
ring that was idle for a moment, more if every frame of the record had to queue.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

WRAP = 1 << 31  # frames keep 31 bits of a time


@dataclass(frozen=True)
class Span:
    """One microbatch at one stage, in microseconds of rank 0's clock since the record began."""

    rank: int
    step: int
    table: int
    is_prefill: bool
    num_rows: int
    num_tokens: int
    start_us: int
    busy_us: int

    @property
    def end_us(self) -> int:
        return self.start_us + self.busy_us

    @property
    def name(self) -> str:
        """The name, which gives the colour: a decode group has its table's, a chunk its step's."""
        return f"prefill {self.step}" if self.is_prefill else f"decode {self.table}"


def read_spans(record: Mapping[str, Any]) -> list[Span]:
    """All spans of a record, by step and then in the order of the lap."""
    num_ranks = len(record["ranks"])
    steps = record["steps"]
    hosts = [entry["host"] for entry in record["ranks"]]
    starts = _unwrap(hosts, steps)
    offsets = clock_offsets(hosts, steps, starts)
    return [
        Span(
            rank=rank,
            step=step["step"],
            table=step["table"],
            is_prefill=step["is_prefill"],
            num_rows=step["num_rows"],
            num_tokens=step["num_tokens"],
            start_us=start_us[rank] - offsets[rank] - record["begin_us"],
            busy_us=step["busy_us"][rank],
        )
        for step, start_us in zip(steps, starts, strict=True)
        for rank in lap_order(num_ranks)
    ]


def lap_order(num_ranks: int) -> list[int]:
    """N-1, …, 1, 0: the order in which a microbatch passes the ranks."""
    return list(range(num_ranks - 1, -1, -1))


def _unwrap(hosts: Sequence[str], steps: Sequence[Mapping[str, Any]]) -> list[list[int]]:
    """Times of all ranks without wraps, each host's shifted by a constant from its clock."""
    if not steps:
        return []
    sent_us = np.array([[step["sent_us"]] for step in steps])
    since = np.array([step["start_us"] for step in steps]) - sent_us  # (steps, ranks)
    first = since[0, [hosts.index(host) for host in hosts]] % WRAP  # of one rank of each host
    # Near the first one, whichever way round the wrap.
    near: list[list[int]] = (sent_us + first + (since - first + WRAP // 2) % WRAP - WRAP // 2).tolist()
    return near


def clock_offsets(
    hosts: Sequence[str], steps: Sequence[Mapping[str, Any]], starts: Sequence[Sequence[int]]
) -> list[int]:
    """How far each rank's clock is ahead of rank 0's, in microseconds."""
    num_ranks = len(hosts)
    if not steps or len(set(hosts)) == 1:
        return [0] * num_ranks
    lap = lap_order(num_ranks)
    starts_us = np.array(starts)  # (steps, ranks)
    ends_us = starts_us + np.array([step["busy_us"] for step in steps])
    # By hop: a microbatch leaves rank 0 when it is sent, and the others at their ends.
    left_us = np.hstack([[[step["sent_us"]] for step in steps], ends_us[:, lap[:-1]]])
    least_us = (starts_us[:, lap] - left_us).min(axis=0)
    crosses = np.array([hosts[here] != hosts[there] for here, there in pairwise([0, *lap])])
    ahead_us = np.where(crosses, least_us - least_us[crosses].mean(), 0.0).cumsum().round()
    offsets = dict(zip(lap[:-1], ahead_us.astype(int).tolist(), strict=False))
    return [offsets.get(rank, 0) for rank in range(num_ranks)]


def busy_shares(spans: Sequence[Span], num_ranks: int, begin_us: int, end_us: int) -> list[float]:
    """The share of a window in which each rank worked."""
    busy = [0] * num_ranks
    for span in spans:
        busy[span.rank] += max(0, min(span.end_us, end_us) - max(span.start_us, begin_us))
    return [us / max(1, end_us - begin_us) for us in busy]


def describe_trace(record: Mapping[str, Any], spans: Sequence[Span]) -> list[tuple[str, ...]]:
    """Rows of a table: the work of each rank during the record."""
    num_ranks, length_us = len(record["ranks"]), record["end_us"] - record["begin_us"]
    shares = [
        busy_shares([span for span in spans if span.is_prefill in kinds], num_ranks, 0, length_us)
        for kinds in ((True, False), (True,), (False,))
    ]
    rows: list[tuple[str, ...]] = [("rank", "host", "layers", "busy", "prefill", "decode", "steps")]
    for entry in record["ranks"]:
        rank, num_steps = entry["rank"], sum(span.rank == entry["rank"] for span in spans)
        figures = (f"{each[rank]:.1%}" for each in shares)
        rows.append((str(rank), str(entry["host"]), _describe_layers(entry), *figures, str(num_steps)))
    return rows


def _describe_layers(entry: Mapping[str, Any]) -> str:
    return f"{entry['first_layer']}-{entry['first_layer'] + entry['num_layers'] - 1}"


def make_chrome_trace(record: Mapping[str, Any], spans: Sequence[Span]) -> dict[str, Any]:
    """The JSON that chrome://tracing and ui.perfetto.dev open: a row a rank, the first stage on top."""
    events: list[dict[str, Any]] = [
        {"ph": "M", "pid": 0, "name": "process_name", "args": {"name": f"ring, epoch {record['epoch']}"}}
    ]
    for entry in record["ranks"]:
        rank, row = entry["rank"], {"ph": "M", "pid": 0, "tid": entry["rank"]}
        name = f"rank {rank}: layers {_describe_layers(entry)}, {entry['host']}"
        events.append({**row, "name": "thread_name", "args": {"name": name}})
        place = len(record["ranks"]) - 1 - rank
        events.append({**row, "name": "thread_sort_index", "args": {"sort_index": place}})
    events += [
        {
            "ph": "X",
            "pid": 0,
            "tid": span.rank,
            "name": span.name,
            "cat": "prefill" if span.is_prefill else "decode",
            "ts": span.start_us,
            "dur": span.busy_us,
            "args": {
                "step": span.step,
                "table": span.table,
                "rows": span.num_rows,
                "tokens": span.num_tokens,
            },
        }
        for span in spans
    ]
    return {"traceEvents": events, "displayTimeUnit": "ms"}
