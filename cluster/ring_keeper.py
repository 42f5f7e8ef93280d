"""Keeps a ring alive: one life after another, with spares at hand, until it is asked to stop.

Knows when to start again and with what. What a life is, and why it ended, is ring_life's; the policy's
numbers are restart_policy's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

import psutil

from cluster import ports
from cluster.child import Child, ChildPlan
from cluster.log_files import LineBuffer
from cluster.restart_policy import RestartPolicy
from cluster.ring_life import LifePlan, RingLife, Verdict
from cluster.running import Running
from cluster.spares import Spares, mark_code
from cluster.state_file import mark_ring_ended

# Rank 0 drains for SHUTDOWN_TIMEOUT; then it puts back what still runs and sends STOP round.
STOP_LAP_LIMIT_S = 5.0
# A spare takes 200 MB; what is tight goes without.
SPARE_MEMORY_BYTES = 1 << 29

logger = logging.getLogger("cluster.supervisor")


class RingKeeper:
    """Runs once: `keep` returns when the ring was stopped. `restart` begins a new life with new settings."""

    def __init__(self, running: Running, secret: str) -> None:
        self._running = running
        self._secret = secret
        self._stop = asyncio.Event()
        self._restart = asyncio.Event()
        self._spares = Spares(running.log_of)
        self._filling: asyncio.Task[None] | None = None
        self.life: RingLife | None = None

    @property
    def spares(self) -> list[Child]:
        """What waits to become a rank."""
        return self._spares.children

    @property
    def is_ready(self) -> bool:
        """All ranks of the present life serve."""
        return self.life is not None and self.life.is_ready and not self._restart.is_set()

    def stop(self) -> None:
        """Drain; said a second time, do not wait for it."""
        if self._stop.is_set() and self.life:
            self.life.abandon()
        self._stop.set()

    def restart(self) -> None:
        """Drain this life and begin another, with the settings as they are then."""
        self._restart.set()

    async def keep(self) -> None:
        """Keep the ring until `stop`."""
        try:
            await self._keep()
        finally:
            if self._filling is not None:
                await asyncio.gather(self._filling, return_exceptions=True)
            await self._spares.drop()

    async def _keep(self) -> None:
        policy = RestartPolicy(first_delay_s=self._running.programs.restart_delay_s)
        while not self._stop.is_set():
            life = self.life = self._make_life()
            verdict = await self._live(life)
            if self._restart.is_set() and not self._stop.is_set():
                self._restart.clear()
                policy = RestartPolicy(first_delay_s=self._running.programs.restart_delay_s)
                continue
            if verdict is None:
                return
            mark_ring_ended(self._running.settings.run_dir, life.plan.epoch, "failed", verdict.reason)
            delay_s = policy.after_failure(
                made_progress=life.made_progress,
                is_permanent=verdict.was_refused,
                was_killed=verdict.was_killed,
            )
            await self._pause(verdict, delay_s, policy.num_failures)

    async def _pause(self, verdict: Verdict, delay_s: float | None, num_failures: int) -> None:
        """Say what happened and wait for the next try; for ever, where there is none."""
        running = self._running
        running.state.failed_process = verdict.process
        if delay_s is None:
            logger.error("the ring is given up after %d failures: %s", num_failures, verdict.reason)
            running.set_state("failed", verdict.reason)
            await wait_for_any(self._stop, self._restart)
            return
        logger.warning("%s; the ring starts again in %.1f s", verdict.reason, delay_s)
        running.state.num_restarts += 1
        running.set_state("degraded" if running.was_ready else "starting", verdict.reason)
        if delay_s:
            await wait_for_any(self._stop, self._restart, limit_s=delay_s)

    async def _live(self, life: RingLife) -> Verdict | None:
        """Live one life of the ring to its end; why it failed, None when it was stopped or restarted."""
        epoch = life.plan.epoch
        logger.info(
            "epoch %d: starting %d ranks at %s", epoch, life.plan.ring_size, ", ".join(life.plan.hosts)
        )
        try:
            await life.start()
        except OSError as error:
            await life.end()
            return Verdict(f"a rank cannot be started: {error}")
        failure = asyncio.create_task(life.wait_for_failure())
        asked = asyncio.create_task(wait_for_any(self._stop, self._restart))
        try:
            await asyncio.wait([failure, asked], return_when=asyncio.FIRST_COMPLETED)
            if failure.done():
                return failure.result()
            failure.cancel()
            await asyncio.gather(failure, return_exceptions=True)
            is_clean = await life.drain(self._running.settings.shutdown_timeout + STOP_LAP_LIMIT_S)
            logger.info("epoch %d: %s", epoch, "drained" if is_clean else "ended")
            mark_ring_ended(self._running.settings.run_dir, epoch, "stopped", None)
            return None
        finally:
            asked.cancel()
            await life.end()

    def _make_life(self) -> RingLife:
        running, settings = self._running, self._running.settings
        running.state.epoch += 1
        address = settings.ring_address
        free = ports.free_ring_ports(address, settings.local_ranks)
        plan = LifePlan(
            epoch=running.state.epoch,
            hosts=tuple(f"{address}:{port}" for port in free),
            secret=self._secret,
            command=running.programs.rank,
            folder=running.programs.folder,
            environment=running.environment,
            connect_limit_s=settings.connect_timeout,
            load_limit_s=settings.load_timeout,
            heartbeat_limit_s=running.heartbeat_limit_s,
            settings=running.live_values,
        )
        return RingLife(plan, running.log_of, self._on_change, self._take_spare)

    def _on_change(self) -> None:
        """A rank has come further: when all are ready, see to the spares of the next life."""
        is_filling = self._filling is not None and not self._filling.done()
        if self.is_ready and not is_filling and self._has_memory():
            self._filling = asyncio.create_task(self._fill())
        self._running.publish()

    def _has_memory(self) -> bool:
        needed = SPARE_MEMORY_BYTES * self._running.settings.local_ranks
        return bool(psutil.virtual_memory().available > needed)

    async def _fill(self) -> None:
        running = self._running
        plans = [
            ChildPlan(
                name=f"rank {rank}",
                command=[*running.programs.rank, "--rank", str(rank), "--spare"],
                folder=running.programs.folder,
                environment=running.environment,
            )
            for rank in range(running.settings.local_ranks)
        ]
        await self._spares.fill(plans, self._mark())
        running.publish()

    async def _take_spare(self, rank: int, output: LineBuffer) -> Child | None:
        return await self._spares.take(rank, self._mark(), output)

    def _mark(self) -> object:
        """What a spare was made with and cannot change any more."""
        settings = self._running.settings
        fixed = tuple(
            str(settings.value(key)) for key in settings.all_keys() if not settings.about(key).is_live
        )
        return fixed, mark_code(self._running.programs.folder)


async def wait_for_any(*events: asyncio.Event, limit_s: float | None = None) -> None:
    """Wait for one of several events, or until the time is up."""
    tasks = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(tasks, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)
