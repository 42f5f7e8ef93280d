"""`batches`: lists the batches of all clients, and cancels one. Reads the spool; needs no running service.

Knows nothing of how batches run.
"""

from __future__ import annotations

import json
import time

from cluster.commands.requests.submit import open_spool
from cluster.errors import ClusterError
from cluster.terminal import Terminal, format_duration, make_table
from config import Settings
from spool import SpoolError
from spool.batches import BatchStore, BatchView

HEADING = ("id", "state", "done", "failed", "lines", "age", "output")


def list_batches(settings: Settings, terminal: Terminal, *, is_json: bool) -> int:
    """Print all batches, the newest first. Raises ClusterError."""
    try:
        store = BatchStore(open_spool(settings)) if settings.spool_dir.is_dir() else None
        views = store.list_all() if store is not None else []
    except SpoolError as error:
        raise ClusterError(f"the spool refuses: {error}") from error
    if is_json:
        terminal.line(json.dumps([describe(store, view) for view in views if store is not None], indent=2))
        return 0
    if store is None or not views:
        terminal.line("no batches: ./launch.sh submit FILE.jsonl makes one, and so does POST /v1/batches")
        return 0
    for line in make_table([HEADING, *(_row(store, view) for view in views)]):
        terminal.line(line)
    return 0


def cancel_batch(settings: Settings, terminal: Terminal, id: str) -> int:
    """Cancel a batch. Raises ClusterError: unknown, or it has ended."""
    try:
        store = BatchStore(open_spool(settings)) if settings.spool_dir.is_dir() else None
        view = store.find(id) if store is not None else None
        if store is None or view is None:
            raise ClusterError(f"there is no batch {id[:80]}: ./launch.sh batches lists them")
        if view.state.has_ended:
            raise ClusterError(f"{id} is {view.status}: it cannot be cancelled any more")
        store.cancel(id)
    except SpoolError as error:
        raise ClusterError(f"the spool refuses: {error}") from error
    terminal.line(f"{id} is cancelling")
    return 0


def describe(store: BatchStore, view: BatchView) -> dict[str, object]:
    """A batch as JSON."""
    state = view.state
    return {
        "id": view.batch.id,
        "state": view.status,
        "completed": state.num_completed,
        "failed": state.num_failed,
        "total": state.num_total,
        "created_unix": view.batch.created_unix,
        "output": _path(store, state.output_file_id),
        "errors": _path(store, state.error_file_id),
    }


def _row(store: BatchStore, view: BatchView) -> tuple[str, ...]:
    state = view.state
    counts = map(str, (state.num_completed, state.num_failed, state.num_total))
    age = format_duration(max(0.0, time.time() - view.batch.created_unix))
    return view.batch.id, view.status, *counts, age, _path(store, state.output_file_id) or "-"


def _path(store: BatchStore, file_id: str | None) -> str | None:
    return None if file_id is None else str(store.files.path(file_id))
