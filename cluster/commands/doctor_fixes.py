"""`doctor --fix`: what is safe to do on other hosts without asking: our own code and environment there.

Nothing outside of WORKER_DIR is touched; no host key is accepted, no key copied, nothing installed with sudo.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from cluster.errors import ClusterError
from cluster.hosts.hosts import Cluster
from cluster.hosts.probe import probe
from cluster.hosts.workers import Worker, ensure_environment, list_workers, sync_code
from config import Settings

Say = Callable[[str], None]


async def treat(cluster: Cluster, settings: Settings, say: Say) -> None:
    """Bring code and environment of all hosts up to date, at once; what fails is said and left."""
    await asyncio.gather(*(_treat_host(worker, settings, say) for worker in list_workers(cluster, settings)))


async def _treat_host(worker: Worker, settings: Settings, say: Say) -> None:
    name = worker.host.name
    try:
        facts = await probe(worker.host, settings)
        if not facts.is_new_enough:
            return
        if changed := await sync_code(worker):
            say(f"fixed: {name}: {len(changed)} files of the code copied")
        if await ensure_environment(worker, lambda text: say(f"{name}: {text}")):
            say(f"fixed: {name}: the environment is made")
    except ClusterError as error:
        say(f"not fixed: {error}")
