"""Ends the processes that a dead supervisor left running, here and on other hosts.

Finds them by pid and start time. Knows nothing of what they do.
"""

from __future__ import annotations

import asyncio

from cluster.errors import ClusterError
from cluster.hosts.remote_ranks import PING_LIMIT_S, end_processes
from cluster.hosts.ssh import close_connections
from cluster.hosts.worker_setup import Worker
from cluster.processes import end_all, read_identity
from cluster.supervisor.service import Service
from cluster.terminal import Terminal

KILL_GRACE_S = 3.0


def end_leftovers(service: Service) -> int:
    """End the processes of a dead supervisor on this machine; returns their number.

    Raises:
        ClusterError: one survives SIGKILL.
    """
    supervisor = read_identity(service.supervisor)
    if supervisor and supervisor.is_alive():
        return 0
    ours = [*service.processes.values(), *service.leaving]
    alive = [identity for identity in ours if identity.is_alive()]
    if left := end_all(alive, grace_s=KILL_GRACE_S):
        pids = " ".join(str(one.pid) for one in left)
        raise ClusterError(f"processes of an earlier start survive SIGKILL: {pids}. See: ps -fp {pids}")
    return len(alive)


def end_on_hosts(service: Service, terminal: Terminal) -> int:
    """End the ranks that may still run on other hosts; returns their number.

    Prints each host that does not answer: ranks there end by themselves when they get no more pings.
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
