"""What was measured, as data: a record for each contender, round and measure, and the file they end in.

STATE_DIR/bench/{kind}-{UTC time}.json holds {"kind", "started_unix", "machine", …, "records": [{"round",
"contender", "measure", "num_clients", "wall_s", "summary", "replies": [{times, token ids, usage, …}]}]}.
Knows nothing of how anything was measured.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.load import LoadResult
from bench.summary import Summary, summarize
from bench.workload import Measure
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


def make_record(round_: int, contender: str, measure: Measure, result: LoadResult) -> Record:
    """Put a load's result into a record."""
    return Record(round_, contender, measure, result, summarize(result.replies, result.wall_s))


def to_data(record: Record) -> dict[str, Any]:
    """A record for JSON."""
    return {
        "round": record.round,
        "contender": record.contender,
        "measure": record.measure.name,
        "title": record.measure.title,
        "num_clients": record.measure.num_clients,
        "summary": asdict(record.summary),
        "replies": [asdict(reply) for reply in record.result.replies],
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
