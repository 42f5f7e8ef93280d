"""The part of `start` and `restart` that prepares the hosts step by step, and its dry run.

Knows nothing of the supervisor, which uses what was placed here.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence

from cluster import ports
from cluster.commands.steps import Steps
from cluster.errors import ClusterError
from cluster.hosts.host_rooms import measure_rooms
from cluster.hosts.hosts import Cluster
from cluster.hosts.model_source import ModelUnknown, read_source
from cluster.hosts.probe import HostFacts
from cluster.hosts.provisioning import (
    PlainSteps,
    check_hosts,
    describe_shares,
    on_all,
    place_code,
    place_model,
    plan_model,
)
from cluster.hosts.ring_plan import choose_layout, find_short_hosts
from cluster.hosts.ssh import close_connections
from cluster.hosts.worker_setup import Worker, list_workers, read_environment, sync_code
from cluster.terminal import Terminal
from cluster.threads import run_beside
from config import ModelNotReady, Settings
from config.model_path import is_complete

NUM_SHOWN_FILES = 5


def place_shown(
    settings: Settings,
    cluster: Cluster,
    steps: Steps,
    prepare_model: Callable[[], None],
    held_bytes: Mapping[str, int],
) -> None:
    """Prepare the hosts and the model on this machine.

    Raises:
        ClusterError: with a sentence for each host that cannot be used.
    """
    try:
        facts = asyncio.run(check_hosts(cluster, settings, steps))
        layout = None
        with contextlib.suppress(ModelUnknown):  # a model that is made here: planned afterwards
            layout = asyncio.run(plan_model(cluster, settings, facts, steps, held_bytes))
        prepare_model()
        if layout is None:
            layout = asyncio.run(plan_model(cluster, settings, facts, steps, held_bytes))
        asyncio.run(place_code(list_workers(cluster, settings), steps))
        placed = asyncio.run(place_model(cluster, settings, layout, steps))
    except (ClusterError, KeyboardInterrupt):
        asyncio.run(close_connections(cluster.remote_hosts))
        raise
    placed.save(settings.run_dir)


def rehearse(settings: Settings, cluster: Cluster, terminal: Terminal) -> int:
    """Print what a start would do; change nothing. Raises: ClusterError."""
    terminal.line(f"model: {settings.model_repo}, {_describe_model(settings)}")
    if not cluster.is_single:
        for lines in asyncio.run(_rehearse_hosts(settings, cluster, terminal)):
            for line in lines:
                terminal.line(line)
    for host in cluster.hosts:
        ranks = ", ".join(str(rank) for rank in cluster.ranks_of(host))
        terminal.line(f"{host.name}: rank {ranks} at {host.address}, on free ports")
    terminal.line(f"front door: {ports.make_url(settings.api_host, settings.api_port)}")
    return 0


def _describe_model(settings: Settings) -> str:
    """Where the model is or comes from. Raises: ModelRefused."""
    with contextlib.suppress(ModelUnknown):  # a model that is made here, or the Hub does not answer
        read_source(settings)
    try:
        folder = settings.model_dir
    except ModelNotReady:
        return "to be downloaded"
    return f"in {folder}" if folder.is_dir() and is_complete(folder) else f"to be made in {folder}"


async def _rehearse_hosts(settings: Settings, cluster: Cluster, terminal: Terminal) -> list[list[str]]:
    try:
        facts = await check_hosts(cluster, settings, PlainSteps(terminal.line))
        planned = await run_beside(_rehearse_plan, settings, cluster, facts)
        return [planned, *await on_all(list_workers(cluster, settings), _rehearse_worker)]
    finally:
        await close_connections(cluster.remote_hosts)


def _rehearse_plan(settings: Settings, cluster: Cluster, facts: Sequence[HostFacts]) -> list[str]:
    try:
        layout = choose_layout(settings, read_source(settings), measure_rooms(cluster, facts, {}))
    except ModelUnknown as error:
        return [f"plan: after the model is made ({error})"]
    short = [f"{name}: {text}" for name, text in find_short_hosts(layout).items()]
    return [f"plan: {describe_shares(layout)}", *short]


async def _rehearse_worker(worker: Worker) -> list[str]:
    name = worker.host.name
    changed = await sync_code(worker, dry_run=True)
    shown = ", ".join(changed[:NUM_SHOWN_FILES])
    more = f" and {len(changed) - NUM_SHOWN_FILES} more" if len(changed) > NUM_SHOWN_FILES else ""
    environment = await read_environment(worker)
    packages = f"to be installed into {worker.folder}/venv ({environment.trouble})"
    if environment.state == "good":
        packages = "are installed"
    return [
        f"{name}: code to {worker.folder}/code: {f'{shown}{more}' if changed else 'nothing has changed'}",
        f"{name}: packages {packages}",
    ]
