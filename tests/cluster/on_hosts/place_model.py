"""Plan the ring of the settings and bring the hosts their files, as a program; prints one JSON object.

`--kill-rsync`: kill the first rsync in the middle of its copy.
`--with-code`: bring the workers our code first.
"""

import asyncio
import json
import os
import signal
import sys
from typing import Any

import psutil

from cluster.errors import ClusterError
from cluster.hosts.hosts import read_cluster
from cluster.hosts.model_files import ensure_models
from cluster.hosts.probe import probe
from cluster.hosts.ring_plan import plan_ring
from cluster.hosts.ssh import close_connections
from cluster.hosts.worker_setup import list_workers, sync_code
from config import load_settings

KILLS = "--kill-rsync" in sys.argv


async def run() -> dict[str, Any]:
    """Plan and copy; what came of it."""
    settings = load_settings()
    cluster = read_cluster(settings)
    copied: dict[str, int] = {}

    def report(host: str, done_bytes: int, total_bytes: int, what: str) -> None:
        if what == "checking":
            return
        copied[host] = max(copied.get(host, 0), done_bytes)
        if KILLS and total_bytes // 4 < done_bytes < total_bytes:
            for child in psutil.Process().children():
                if child.name() == "rsync":
                    os.kill(child.pid, signal.SIGKILL)

    try:
        facts = await asyncio.gather(*(probe(host, settings) for host in cluster.hosts))
        layout = await plan_ring(settings, cluster, facts, {})
        workers = list_workers(cluster, settings)
        if "--with-code" in sys.argv:
            await asyncio.gather(*(sync_code(worker) for worker in workers))
        folders = await ensure_models(cluster, workers, layout, settings, report)
    except ClusterError as error:
        return {"error": str(error), "copied": copied}
    finally:
        await close_connections(cluster.remote_hosts)
    return {"counts": layout.counts, "folders": folders, "copied": copied}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(run())))
