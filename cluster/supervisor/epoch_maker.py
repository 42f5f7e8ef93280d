"""Makes the plan of each epoch: which rank runs on which host and port, with which command.

On one machine a new epoch needs new ports only. On other hosts it first ends the ranks that an earlier epoch
may have left, and places code, packages and model files again if something changed or failed. Knows nothing
of when an epoch begins or why one ended.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from cluster import ports
from cluster.errors import ClusterError
from cluster.hosts.hosts import Cluster, read_cluster
from cluster.hosts.provisioning import (
    PlainSteps,
    Provisioned,
    forget_provisioned,
    load_provisioned,
    make_key,
    on_all,
    place_all,
)
from cluster.hosts.remote_ranks import ask_ports, end_processes, make_rank_command
from cluster.hosts.ssh import HostUnreachable, close_connections
from cluster.hosts.worker_setup import Worker, list_workers
from cluster.processes import ProcessIdentity
from cluster.supervisor.epoch_plan import EpochPlan, RankPlace
from cluster.supervisor.heartbeats import Rank
from cluster.supervisor.running import Running, make_environment
from cluster.threads import run_beside

logger = logging.getLogger("cluster.supervisor.supervisor")


class EpochMaker:
    """Keeps the hosts of the ring, and what was placed on them."""

    def __init__(
        self, running: Running, secret: str, left_behind: Mapping[str, Sequence[ProcessIdentity]]
    ) -> None:
        self._running = running
        self._secret = secret
        # By ssh destination: ranks that may still run.
        self._left_behind = {ssh: list(identities) for ssh, identities in left_behind.items()}
        self._used: set[Worker] = set()
        self.cluster: Cluster | None = None
        self.has_kept_placed = False  # the last plan used files placed earlier

    @property
    def is_single(self) -> bool:
        """All ranks run on this machine."""
        return self.cluster is None or self.cluster.is_single

    async def make_plan(self) -> EpochPlan:
        """The plan of the next epoch.

        Raises:
            ClusterError: a host does not answer (provisioning.is_away), or something cannot be placed.
            SettingsError: the settings' hosts cannot be used, or a name cannot be looked up.
        """
        settings = self._running.settings
        cluster = self.cluster = await run_beside(read_cluster, settings)  # it looks up names
        workers = list_workers(cluster, settings)
        placed, free, self.has_kept_placed = None, {}, False
        if workers:
            self._used |= set(workers)
            await on_all(workers, self._end_left_behind)
            placed = load_provisioned(settings.run_dir, make_key(settings, cluster))
            self.has_kept_placed = placed is not None
            placed = placed or await place_all(cluster, settings, PlainSteps(logger.info))
            found: list[tuple[int, ...]] = await on_all(workers, ask_ports)
            free = {worker.host.ssh: ports_there for worker, ports_there in zip(workers, found, strict=True)}
        addresses = self._pick_addresses(cluster, free)
        self._running.state.epoch += 1
        return self._make_plan(cluster, addresses, placed)

    async def _end_left_behind(self, worker: Worker) -> None:
        identities = self._left_behind.get(worker.host.ssh or "")
        if identities:
            await end_processes(worker, identities)
            del self._left_behind[worker.host.ssh or ""]

    def note_end(self, ranks: Sequence[Rank]) -> None:
        """Remember the ranks that may still run on hosts we lost."""
        for rank in ranks:
            is_lost = rank.child is not None and rank.child.has_lost_host
            if is_lost and rank.host and rank.host.ssh and rank.process_there:
                self._left_behind.setdefault(rank.host.ssh, []).append(rank.process_there)

    def forget_provisioned(self) -> None:
        """Check everything on the hosts again before the next epoch."""
        forget_provisioned(self._running.settings.run_dir)

    @staticmethod
    def _pick_addresses(cluster: Cluster, free: Mapping[str | None, Sequence[int]]) -> tuple[str, ...]:
        here = cluster.hosts[0]
        try:
            own = iter(ports.free_ring_ports(here.address, cluster.num_local_ranks))
        except ClusterError as error:
            if cluster.is_single:
                raise
            # An interface may lose its address with its cable, and get it back with it.
            raise HostUnreachable(here, str(error), "plug the cable in, or correct RING_ADDRESS") from None
        others = {ssh: iter(ports_there) for ssh, ports_there in free.items()}
        return tuple(
            f"{host.address}:{next(own if host.is_local else others[host.ssh])}"
            for host in cluster.hosts
            for _ in cluster.ranks_of(host)
        )

    def _make_plan(
        self, cluster: Cluster, addresses: tuple[str, ...], placed: Provisioned | None
    ) -> EpochPlan:
        running, settings = self._running, self._running.settings
        return EpochPlan(
            epoch=running.state.epoch,
            hosts=addresses,
            secret=self._secret,
            command=running.programs.rank,
            folder=running.programs.folder,
            environment=make_environment(settings, cluster.num_local_ranks),
            connect_limit_s=settings.connect_timeout,
            load_limit_s=settings.load_timeout,
            heartbeat_limit_s=running.heartbeat_limit_s,
            places=() if placed is None else self._make_places(cluster, placed),
            layers=None if placed is None else placed.layers,
            dequantize=None if placed is None else placed.dequantize,
        )

    def _make_places(self, cluster: Cluster, placed: Provisioned) -> tuple[RankPlace, ...]:
        settings = self._running.settings
        workers = {worker.host.ssh: worker for worker in list_workers(cluster, settings)}
        places = []
        for rank in range(cluster.ring_size):
            host = cluster.host_of(rank)
            if host.ssh is None:
                places.append(RankPlace(host))
                continue
            worker, folder = workers[host.ssh], placed.model_folders.get(host.ssh)
            command = make_rank_command(worker, settings, rank, model_folder=folder)
            places.append(RankPlace(host, worker, command, folder))
        return tuple(places)

    async def close(self) -> None:
        """Close the connections to all hosts."""
        if self._used:
            await close_connections([worker.host for worker in self._used])
