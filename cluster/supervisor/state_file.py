"""Writes run/supervisor.json, and the end of an epoch into run/ring.json when its ranks have died.

`SupervisorState` is the layout of supervisor.json; that of ring.json belongs to rank 0.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.supervisor.child import Child
from cluster.supervisor.heartbeats import Rank
from config.disk_trouble import DiskTroubles
from config.run_files import number, read_json, write_status

STATE_NAME = "supervisor.json"
RING_NAME = "ring.json"


@dataclass
class SupervisorState:
    """The fields of supervisor.json; `state` is starting, ready, degraded, stopping, stopped or failed."""

    pid: int
    start_time: float
    started_unix: float
    api: dict[str, Any]  # {"host", "port"}
    overrides: dict[str, str]
    settings: dict[str, Any]
    state: str = "starting"
    reason: str | None = None
    failed_process: str | None = None
    epoch: int = 0
    restarts: int = 0
    was_ready: bool = False  # under this supervisor or an earlier one of this STATE_DIR
    # After a failure: the failed tries in a row, when the next one begins, and whether another try alone will
    # hardly help.
    num_failures: int = 0
    next_try_unix: float | None = None
    is_stuck: bool = False
    processes: list[dict[str, Any]] = field(default_factory=list)
    leaving: list[dict[str, Any]] = field(default_factory=list)  # replaced front doors that still run
    # Edited settings that need a restart, and why the last edit was refused.
    needs_restart: list[str] = field(default_factory=list)
    settings_error: str | None = None
    # The last `restart`: {"id", "state": running|done|failed, "error"}.
    restart: dict[str, Any] | None = None
    code: str = ""
    troubles: list[str] = field(default_factory=list)  # files that the supervisor cannot write now


def forget_trouble(state: SupervisorState) -> None:
    """Clear the reason and the counts of failures."""
    state.reason = state.failed_process = state.next_try_unix = None
    state.num_failures, state.is_stuck = 0, False


def make_process_entry(child: Child, state: str) -> dict[str, Any]:
    """One process in supervisor.json."""
    return {
        "name": child.name,
        "pid": child.identity.pid,
        "host": "localhost",
        "state": state if child.exit_code is None else "exited",
        "started_unix": child.started_unix,
        "start_time": child.identity.start_time,
        "exit": child.exit_code,
    }


def make_rank_entry(rank: Rank) -> dict[str, Any] | None:
    """One rank in supervisor.json, with its progress; None before it was started."""
    if rank.child is None:
        return None
    progress = {"progress": round(rank.progress, 3), "memory_bytes": rank.memory_bytes}
    return make_process_entry(rank.child, rank.phase) | progress | _make_place(rank)


def _make_place(rank: Rank) -> dict[str, Any]:
    """Where a rank runs in a ring over several hosts; enough to find and end it there."""
    if rank.host is None:
        return {}
    place: dict[str, Any] = {"host": rank.host.name, "address": rank.host.address}
    if rank.host.ssh is not None:
        place["ssh"] = rank.host.ssh
        if there := rank.process_there:
            place["process_there"] = {"pid": there.pid, "start_time": there.start_time}
    return place


def last_epoch(run_dir: Path) -> int:
    """The highest epoch so far in this STATE_DIR."""
    found = (read_json(run_dir / name) or {} for name in (STATE_NAME, RING_NAME))
    return max((int(number(entry.get("epoch"))) for entry in found), default=0)


def mark_ring_ended(run_dir: Path, epoch: int, phase: str, reason: str | None) -> None:
    """Note the end of an epoch in ring.json, which rank 0 no longer writes."""
    ring = read_json(run_dir / RING_NAME) or {}
    is_noted = ring.get("epoch") == epoch and ring.get("phase") == "stopped" and phase == "stopped"
    if not is_noted:
        ring |= {"updated_unix": time.time(), "epoch": epoch, "phase": phase, "reason": reason}
        with DiskTroubles().guard(RING_NAME):
            write_status(run_dir / RING_NAME, ring)
