"""`stop`: asks the supervisor to drain, waits for it, and ends what is left, on all hosts.

Knows nothing of what the processes do.
"""

from __future__ import annotations

import signal
import time

from cluster import ports
from cluster.supervisor.leftovers import KILL_GRACE_S, end_leftovers, end_on_hosts
from cluster.supervisor.service import Service, read_service
from cluster.terminal import Terminal, format_duration
from config import Settings
from config.run_files import mapping, number

LOOK_INTERVAL_S = 0.2
EXTRA_LIMIT_S = 20.0


def stop(settings: Settings, terminal: Terminal, *, is_quiet: bool = False) -> int:
    """Stop the service of STATE_DIR; 0 also if none runs.

    Raises:
        ClusterError: a process survives SIGKILL, or holds the port.
    """
    service = read_service(settings)
    if service.holder is None:
        num_left = end_leftovers(service) + end_on_hosts(service, terminal)
        if not is_quiet:
            terminal.line(
                "Nothing was running." if not num_left else f"Ended {num_left} processes left behind."
            )
        return 0
    started_at = time.monotonic()
    if not _drain(settings, service, terminal):
        terminal.line(f"Not drained within SHUTDOWN_TIMEOUT: killing supervisor {service.holder.pid}")
        service.holder.send(signal.SIGKILL)
        service.holder.wait(KILL_GRACE_S)
    service = read_service(settings)
    end_leftovers(service)
    end_on_hosts(service, terminal)
    if service.api_address and not ports.is_free(*service.api_address):
        raise ports.describe_taken(*service.api_address)
    if not is_quiet:
        terminal.line(
            f"Stopped in {format_duration(time.monotonic() - started_at)}; nothing is left running."
        )
    return 0


def _drain(settings: Settings, service: Service, terminal: Terminal) -> bool:
    """SIGTERM, then wait and show the running requests; True when the supervisor has ended."""
    assert service.holder is not None
    service.holder.send(signal.SIGTERM)
    started_at = time.monotonic()
    theirs = mapping(service.supervisor.get("settings"))
    limit_s = number(theirs.get("SHUTDOWN_TIMEOUT", settings.shutdown_timeout))
    while (waited_s := time.monotonic() - started_at) < limit_s + EXTRA_LIMIT_S:
        if service.holder.wait(LOOK_INTERVAL_S):
            return True
        queue = mapping(read_service(settings).ring.get("queue"))
        terminal.live(f"draining: {queue.get('num_running', 0)} running, {waited_s:.0f} of {limit_s:.0f} s")
    return False
