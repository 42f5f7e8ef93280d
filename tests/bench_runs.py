"""Replies, records and raw data of runs that never were."""

from dataclasses import replace
from typing import Any

from bench.dialects import Reply
from bench.load import LoadResult
from bench.measures import Measure
from bench.measuring import figure_of
from bench.records import Record, make_record, plain, to_data


def make_reply(times_s: list[float], num_tokens: int | None = None, error: str | None = None) -> Reply:
    """A reply sent at 1 s with text at these times."""
    usage = {"prompt_tokens": 10} if num_tokens is None else {"completion_tokens": num_tokens}
    end_s = times_s[-1] if times_s else 0.0
    return Reply(sent_s=1.0, text_times_s=times_s, end_s=end_s, usage=usage, error=error)


def make_records(figures: dict[str, list[float]], measure: Measure) -> list[Record]:
    """One record a round, with so many tokens in one second, or with that time to the first token."""
    records = []
    for name, values in figures.items():
        for round_, value in enumerate(values, start=1):
            times = [1.0 + value, 1.5 + value] if measure.is_less_better else [1.1, 1.2]
            record = make_record(round_, name, measure, LoadResult([make_reply(times, int(value))], 1.0))
            records.append(replace(record, figure=figure_of(measure, record)))
    return records


def make_run(records: list[Record]) -> dict[str, Any]:
    """The raw data of a run, as far as tables are made of it."""
    contenders = [{"name": name, "blas": "mkl"} for name in dict.fromkeys(r.contender for r in records)]
    run: dict[str, Any] = plain(
        {"records": [to_data(record) for record in records], "contenders": contenders}
    )
    return run
