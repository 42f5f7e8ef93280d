"""The oracle's own proof: journals of a run, falsified on purpose, must each make it speak.

An oracle that finds nothing may be blind. So at the end of every run its findings are tried on the run's own
journal with one lie put into it at a time. Pure.
"""

from __future__ import annotations

import copy
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import msgspec

from chaos.client import STREAMS
from chaos.found import Found
from chaos.journal import Entry, Question
from chaos.oracle import judge
from spool import Result

Lie = Callable[[Entry, Found], Found]  # falsifies the entry in place, and returns what is found instead


def _with_results(found: Found, results: Mapping[str, Result]) -> Found:
    return replace(found, results=results)


def _without_result(entry: Entry, found: Found) -> Found:
    return _with_results(found, {id: one for id, one in found.results.items() if id not in entry.ids})


def _with_unknown_result(entry: Entry, found: Found) -> Found:
    stranger = uuid.uuid4().hex
    return _with_results(
        found, {**found.results, stranger: msgspec.structs.replace(found.results[entry.ids[-1]], id=stranger)}
    )


def _with_second_id(entry: Entry, found: Found) -> Found:
    entry.ids.insert(0, uuid.uuid4().hex)
    return found


def _with_other_token(entry: Entry, found: Found) -> Found:
    index, token_id = entry.tokens[-1]
    entry.tokens[-1] = (index, token_id + 1)
    return found


def _with_token_twice(entry: Entry, found: Found) -> Found:
    entry.tokens.append(entry.tokens[-1])
    return found


def _without_token(entry: Entry, found: Found) -> Found:
    del entry.tokens[len(entry.tokens) // 2]
    return found


def _with_failure(entry: Entry, found: Found) -> Found:
    id = entry.ids[-1]
    failed = msgspec.structs.replace(
        found.results[id], finish_reason="error", error={"code": "poison", "message": ""}
    )
    return _with_results(found, {**found.results, id: failed})


LIES: Mapping[str, tuple[str, Lie]] = {
    "an answer is taken from the spool": ("lost", _without_result),
    "a token is taken from a stream": ("lost", _without_token),
    "the spool holds an answer nobody asked for": ("doubled", _with_unknown_result),
    "a client was told two ids": ("doubled", _with_second_id),
    "a token came twice": ("doubled", _with_token_twice),
    "a stream showed another token": ("contradicted", _with_other_token),
    "an answer is poison": ("condemned", _with_failure),
}


def blind_spots(
    entries: Sequence[Entry], questions: Mapping[int, Question], found: Found
) -> list[str] | None:
    """The lies that the oracle does not find; None where the journal has no stream to falsify."""
    place = next((place for place, entry in enumerate(entries) if _is_good_stream(entry, found)), None)
    if place is None:
        return None
    before = judge(entries, questions, found).counts
    blind = []
    for name, (what, lie) in LIES.items():
        told = [*entries]
        told[place] = copy.deepcopy(entries[place])
        after = judge(told, questions, lie(told[place], found)).counts
        if after[what] != before[what] + 1:
            blind.append(name)
    return blind


def _is_good_stream(entry: Entry, found: Found) -> bool:
    """Whether this is a stream that saw all of its answer, of at least three tokens."""
    result = found.results.get(entry.ids[-1]) if entry.ids else None
    is_whole = result is not None and len(entry.tokens) == len(result.token_ids) >= 3
    return entry.kind in STREAMS and is_whole and entry.result is not None
