"""The spool at the end of a run: the other side of the oracle's comparison.

Only reads files, as any front door may. Knows clients by their keys alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from spool import CorruptRequest, Result, Spool, is_id
from spool.idempotency import Keys
from spool.names import id_of, is_entry_name

OWNER = ""  # of requests to a front door that asks for no API key


@dataclass(frozen=True)
class Found:
    """Every result, every id without one, and the id of each client's key."""

    results: Mapping[str, Result]
    unanswered: frozenset[str] = frozenset()
    id_of_key: Mapping[str, str] = field(default_factory=dict)
    damaged: tuple[str, ...] = ()  # in bad/, or a result that cannot be read
    further_choices: frozenset[str] = frozenset()  # of the results, those of choices behind the first


def read_spool(spool: Spool, keys: Iterable[str]) -> Found:
    """Read all of done/, the queue, and the records of these keys."""
    folder, results, damaged = spool.folder, {}, [f"bad/{name}" for name in spool.names(spool.folder.bad)]
    further_choices = set()
    for name in spool.names(folder.done):
        id = name.removesuffix(".json")
        try:
            result = spool.read_result(id) if is_id(id) else None
        except CorruptRequest as error:
            damaged.append(f"done/{name}: {error}")
            continue
        if result is None:
            damaged.append(f"done/{name}: no result of ours")
        else:
            results[id] = result
            request = spool.read_request(id)
            if request is not None and request.params.choice:
                further_choices.add(id)
    queued = [*spool.names(folder.incoming), *spool.names(folder.active)]
    records = Keys(folder, spool.fs, is_synced=False)
    found = {key: records.find(records.path(OWNER, key)) for key in keys}
    return Found(
        results=results,
        unanswered=frozenset(id_of(name) for name in queued if is_entry_name(name)) - results.keys(),
        id_of_key={key: record.id for key, record in found.items() if record is not None},
        damaged=tuple(damaged),
        further_choices=frozenset(further_choices),
    )
