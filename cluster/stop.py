"""`stop`: ask the supervisor to drain, wait for it, and see to it that nothing is left, on no host.

Ends processes by pid and start time only. Knows nothing of what they do.
"""

from __future__ import annotations

import asyncio
import signal
import time

from cluster import ports
from cluster.errors import ClusterError
from cluster.processes import end_all, read_identity
from cluster.remote_ranks import PING_LIMIT_S, end_processes
from cluster.service import Service, read_service
from cluster.ssh import close_connections
from cluster.terminal import Terminal, format_duration
from cluster.workers import Worker
from config import Settings

LOOK_INTERVAL_S = 0.2
EXTRA_LIMIT_S = 20.0
KILL_GRACE_S = 3.0


def stop(settings: Settings, terminal: Terminal, *, is_quiet: bool = False) -> int:
    """Stop the service of STATE_DIR; 0 also where none runs.

    Raises:
        ClusterError: something does not die, or holds the port.
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
        terminal.line(f"Not drained within its limit: killing supervisor {service.holder.pid}")
        service.holder.send(signal.SIGKILL)
        service.holder.wait(KILL_GRACE_S)
    service = read_service(settings)
    end_leftovers(service)
    end_on_hosts(service, terminal)
    _check_port(service)
    if not is_quiet:
        terminal.line(
            f"Stopped in {format_duration(time.monotonic() - started_at)}; nothing is left running."
        )
    return 0


def _drain(settings: Settings, service: Service, terminal: Terminal) -> bool:
    """SIGTERM, then wait with a line that tells what it waits for; True when the supervisor has ended."""
    assert service.holder is not None
    service.holder.send(signal.SIGTERM)
    started_at = time.monotonic()
    limit_s = float(service.supervisor.get("settings", {}).get("SHUTDOWN_TIMEOUT", settings.shutdown_timeout))
    while (waited_s := time.monotonic() - started_at) < limit_s + EXTRA_LIMIT_S:
        if service.holder.wait(LOOK_INTERVAL_S):
            return True
        queue = read_service(settings).ring.get("queue", {})
        terminal.live(f"draining: {queue.get('num_running', 0)} running, {waited_s:.0f} of {limit_s:.0f} s")
    return False


def end_leftovers(service: Service) -> int:
    """End what still runs of the processes of a supervisor that is gone; how many there were.

    Raises:
        ClusterError: one does not die.
    """
    supervisor = read_identity(service.supervisor)
    if supervisor and supervisor.is_alive():
        return 0
    ours = [*service.processes.values(), *service.leaving]
    alive = [identity for identity in ours if identity.is_alive()]
    if left := end_all(alive, grace_s=KILL_GRACE_S):
        raise ClusterError(f"these processes do not die: {', '.join(str(one.pid) for one in left)}")
    return len(alive)


def end_on_hosts(service: Service, terminal: Terminal) -> int:
    """End the ranks on other hosts of which nobody knows that they have ended; how many there were.

    One that is not reached is named: its ranks end by themselves, when they hear nothing any more.
    """
    workers = service.workers
    if not workers or (service.holder and service.holder.is_alive()):
        return 0

    async def end(worker: Worker) -> int:
        found = service.left_behind.get(worker.host.ssh or "", [])
        try:
            return await end_processes(worker, found) if found else 0
        except ClusterError as error:
            terminal.line(
                terminal.colored(f"{error}. Ranks there end after {PING_LIMIT_S:.0f} s of silence", "yellow")
            )
            return 0

    async def end_everywhere() -> int:
        num_ended = sum(await asyncio.gather(*(end(worker) for worker in workers)))
        await close_connections([worker.host for worker in workers])
        return num_ended

    return asyncio.run(end_everywhere())


def _check_port(service: Service) -> None:
    if service.api_address and not ports.is_free(*service.api_address):
        raise ports.describe_taken(*service.api_address)
