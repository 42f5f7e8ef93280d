"""What was measured, as data: a record for each contender, round and measure, and the file they end in.

STATE_DIR/bench/{kind}-{UTC time}.json holds {"kind", "started_unix", "machine", …, "records": [{"round",
"contender", "measure", "figure", "summary", "replies": [{times, counts}], …}]}. Reports are made of it alone.
Knows nothing of how anything was measured.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.dialects import Reply
from bench.load import LoadResult
from bench.measures import Measure
from bench.summary import Summary, summarize
from config.run_files import write_json

NUM_DIGITS = 6  # microseconds


@dataclass(frozen=True)
class Record:
    """One measure of one contender in one round."""

    round: int
    contender: str
    measure: Measure
    result: LoadResult
    summary: Summary
    figure: float = math.nan  # what the measure is judged by
    extra: dict[str, Any] = field(default_factory=dict)


def make_record(round_: int, contender: str, measure: Measure, result: LoadResult) -> Record:
    """Put a load's result into a record."""
    return Record(round_, contender, measure, result, summarize(result.replies, result.wall_s))


def to_data(record: Record) -> dict[str, Any]:
    """A record for JSON."""
    measure = record.measure
    return {
        "round": record.round,
        "contender": record.contender,
        "measure": measure.name,
        "group": measure.group,
        "kind": measure.kind,
        "title": measure.title,
        "unit": measure.unit,
        "is_less_better": measure.is_less_better,
        "num_clients": measure.num_clients,
        "max_tokens": measure.max_tokens,
        "prompt_tokens": measure.prompt_tokens,
        "figure": record.figure,
        **({"extra": record.extra} if record.extra else {}),
        "summary": asdict(record.summary),
        "errors": sorted({reply.error for reply in record.result.replies if reply.error}),
        "replies": [_reply_data(reply) for reply in record.result.replies],
    }


def _reply_data(reply: Reply) -> dict[str, Any]:
    """A reply's times and counts; texts are not what is measured."""
    return {
        "sent_s": reply.sent_s,
        "text_times_s": reply.text_times_s,
        "end_s": reply.end_s,
        "num_tokens": reply.num_tokens,
        "finish_reason": reply.finish_reason,
    }


def write_run(folder: Path, kind: str, data: Mapping[str, Any]) -> Path:
    """Write a run's raw data; returns the file."""
    path = folder / f"{kind}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.json"
    write_json(path, {"kind": kind, **plain(dict(data))})
    return path


def plain(value: Any) -> Any:
    """Round what is written and turn NaN, which JSON has not, into null."""
    if isinstance(value, float):
        return None if math.isnan(value) else round(value, NUM_DIGITS)
    if isinstance(value, dict):
        return {str(key): plain(member) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [plain(member) for member in value]
    return value
