"""`restart`: gives a running service new settings and code without refusing or failing a request.

The running supervisor does it (SIGHUP; cluster/supervisor/reload.py): it drains the ring and starts another,
and starts a new front door beside the old one, which ends when its clients have their answers. If the
supervisor's own program or its address has changed, the whole service stops and starts.
"""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Mapping, Sequence

from cluster.commands.start import (
    NUM_PLACING_STEPS,
    PREPARE,
    ROOT,
    check_startable,
    check_this_start,
    place_everything,
    show_warnings,
    start,
)
from cluster.commands.start_progress import LOOK_INTERVAL_S
from cluster.commands.steps import Steps
from cluster.commands.stop import stop
from cluster.errors import ClusterError, StartFailed
from cluster.hosts.code_marks import mark_supervisor
from cluster.hosts.hosts import read_cluster
from cluster.processes import ProcessIdentity
from cluster.supervisor.reload import FIXED_KEYS, RestartOrder, write_order
from cluster.supervisor.restart_policy import MAX_FAILURES
from cluster.supervisor.service import Service, read_service
from cluster.terminal import Terminal, format_duration
from config import Settings
from config.run_files import mapping


def restart(
    settings: Settings,
    overrides: Mapping[str, str],
    terminal: Terminal,
    *,
    prepare: Sequence[str] = PREPARE,
) -> int:
    """Restart; the caller has put the flags of the running service among the overrides.

    Raises:
        ClusterError: with the reason.
    """
    check_startable(settings)
    service = read_service(settings)
    if service.holder is None or (why := find_obstacle(service, settings)):
        if service.holder is not None:
            terminal.line(f"The whole service starts again: {why}")
        stop(settings, terminal)
        return start(settings, overrides, terminal, prepare=prepare)
    show_warnings(settings, terminal)
    check_this_start(settings, service)
    cluster = read_cluster(settings)
    steps = Steps(terminal, 1 if cluster.is_single else NUM_PLACING_STEPS)
    place_everything(settings, overrides, cluster, steps, prepare, service.held_bytes)
    started_at = time.monotonic()
    environment = {key: os.environ[key] for key in Settings.all_keys() if key in os.environ}
    order = RestartOrder(uuid.uuid4().hex, dict(overrides), environment)
    write_order(settings.run_dir, order)
    service.holder.send(signal.SIGHUP)
    _follow(settings, service.holder, order.id, terminal)
    ready = read_service(settings)
    terminal.line(
        f"Restarted in {format_duration(time.monotonic() - started_at)}: epoch {ready.ring.get('epoch')} "
        f"at {ready.url}"
    )
    for line in ready.context_lines:
        terminal.line(line)
    return 0


def find_obstacle(service: Service, settings: Settings) -> str | None:
    """Why the running supervisor cannot restart; None if it can."""
    if service.supervisor.get("code") != mark_supervisor(ROOT):
        return "the supervisor's program has changed"
    theirs, ours = mapping(service.supervisor.get("settings")), settings.public()
    changed = [key for key in FIXED_KEYS if theirs.get(key) != ours[key]]
    return f"{', '.join(changed)} has changed" if changed else None


def _follow(settings: Settings, supervisor: ProcessIdentity, order_id: str, terminal: Terminal) -> None:
    limit_s = (
        settings.shutdown_timeout
        + (settings.connect_timeout + settings.load_timeout) * MAX_FAILURES
        + settings.connect_timeout
    )
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if supervisor.wait(LOOK_INTERVAL_S):
            raise ClusterError("the supervisor ended during the restart: see ./launch.sh logs supervisor")
        service = read_service(settings)
        outcome = mapping(service.supervisor.get("restart"))
        if outcome.get("id") != order_id:
            continue
        terminal.live(f"restarting: {service.state}")
        if outcome.get("state") == "failed":
            raise ClusterError(f"not restarted: {outcome.get('error')}")
        if outcome.get("state") == "done" and service.is_up:
            return
        if service.supervisor.get("state") in ("failed", "stopping", "stopped"):
            raise StartFailed(f"{service.reason}; the queue is kept, and ./launch.sh restart tries again")
        if service.is_stuck:
            raise StartFailed(f"{service.reason}; the queue is kept, and the supervisor tries the ring again")
    raise StartFailed(f"not ready after {format_duration(limit_s)}")
