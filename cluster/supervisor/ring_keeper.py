"""Keeps the ring running: one epoch after another, until `stop`.

Decides when the next epoch starts. ring_epoch.py runs an epoch and finds out why it ended; restart_policy.py
has the delays.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

from cluster.errors import ClusterError
from cluster.hosts.provisioning import is_away
from cluster.hosts.remote_ranks import PING_INTERVAL_S
from cluster.processes import ProcessIdentity
from cluster.supervisor.epoch_maker import EpochMaker
from cluster.supervisor.epoch_plan import EpochPlan
from cluster.supervisor.restart_policy import RestartPolicy
from cluster.supervisor.ring_epoch import RingEpoch, Verdict
from cluster.supervisor.running import Running
from cluster.supervisor.state_file import mark_ring_ended
from cluster.supervisor.tasks import cancel, wait_for_any
from config import ConfigError

# Rank 0 drains for SHUTDOWN_TIMEOUT, then returns what still runs to the queue and sends STOP round the ring.
STOP_LAP_LIMIT_S = 5.0

logger = logging.getLogger("cluster.supervisor.supervisor")


class RingKeeper:
    """Runs once: `keep` returns when the ring was stopped. `restart` begins a new epoch with new settings."""

    def __init__(
        self,
        running: Running,
        secret: str,
        left_behind: Mapping[str, Sequence[ProcessIdentity]] | None = None,
    ) -> None:
        self._running = running
        self._maker = EpochMaker(running, secret, left_behind or {})
        self._stop = asyncio.Event()
        self._restart = asyncio.Event()
        self.epoch: RingEpoch | None = None

    @property
    def is_ready(self) -> bool:
        """All ranks of the current epoch serve."""
        return self.epoch is not None and self.epoch.is_ready and not self._restart.is_set()

    def stop(self) -> None:
        """Drain; called a second time, end at once."""
        if self._stop.is_set() and self.epoch:
            self.epoch.abandon()
        self._stop.set()

    def restart(self) -> None:
        """Drain this epoch and begin the next, with the settings of that moment."""
        self._restart.set()

    async def keep(self) -> None:
        """Keep the ring until `stop`."""
        pings = asyncio.create_task(self._ping())
        try:
            await self._keep()
        finally:
            await cancel(pings)
            await self._maker.close()

    async def _ping(self) -> None:
        """Show the ranks on other hosts once a second that the supervisor lives."""
        while True:
            await asyncio.sleep(PING_INTERVAL_S)
            if self.epoch is not None:
                self.epoch.ping()

    async def _keep(self) -> None:
        policy = RestartPolicy(first_delay_s=self._running.programs.restart_delay_s)
        while not self._stop.is_set():
            verdict = await self._plan_and_run()
            if self._restart.is_set() and not self._stop.is_set():
                self._restart.clear()
                policy = RestartPolicy(first_delay_s=self._running.programs.restart_delay_s)
                continue
            if verdict is None:
                return
            delay_s = self._judge(verdict, policy)
            await self._running.pause("the ring", verdict, delay_s, policy, self._stop, self._restart)

    async def _plan_and_run(self) -> Verdict | None:
        """Plan one epoch and run it; why it failed, None after a stop or restart."""
        plan = await self._make_plan()
        if not isinstance(plan, EpochPlan):
            return plan
        epoch = self.epoch = RingEpoch(plan, self._running.log_of, self._running.publish)
        verdict = await self._run_epoch(epoch)
        self._maker.note_end(epoch.ranks)
        if verdict is None:
            return None
        if verdict.is_away or not epoch.made_progress:
            self._maker.forget_provisioned()
        mark_ring_ended(self._running.settings.run_dir, plan.epoch, "failed", verdict.reason)
        return replace(verdict, made_progress=epoch.made_progress)

    async def _make_plan(self) -> EpochPlan | Verdict | None:
        """The plan of the next epoch, or why there is none; None after a stop or restart meanwhile."""
        making = asyncio.create_task(self._maker.make_plan())
        asked = asyncio.create_task(wait_for_any(self._stop, self._restart))
        try:
            await asyncio.wait([making, asked], return_when=asyncio.FIRST_COMPLETED)
            if not making.done():
                return None
            return making.result()
        except (ClusterError, ConfigError, OSError) as error:
            return self._take_refusal(error)
        finally:
            await cancel(making, asked)

    def _take_refusal(self, error: ClusterError | ConfigError | OSError) -> Verdict:
        running = self._running
        self._maker.forget_provisioned()
        reason = "; ".join(str(error).splitlines())
        mark_ring_ended(running.settings.run_dir, running.state.epoch, "failed", reason)
        if isinstance(error, OSError):  # a full disk, or no process or descriptor left
            return Verdict(f"the ring cannot be prepared: {reason}")
        if isinstance(error, ConfigError):  # an unknown host name: that host may be off
            return Verdict(reason, is_away=running.state.was_ready, was_refused=not running.state.was_ready)
        return Verdict(reason, is_away=is_away(error), was_refused=self._maker.is_single)

    def _judge(self, verdict: Verdict, policy: RestartPolicy) -> float | None:
        """Seconds until the next try; None when the ring is not tried again."""
        # Hosts that connected once and do not now: a cable is out, not a setting wrong.
        was_ready = self._running.state.was_ready
        if verdict.is_away or (verdict.is_unconnected and was_ready):
            return policy.after_away()
        return policy.after_failure(
            made_progress=verdict.made_progress,
            # Files placed earlier may have changed: a refusal is final only after placing everything again.
            is_permanent=verdict.was_refused and not self._maker.has_kept_placed,
            was_killed=verdict.was_killed,
            can_give_up=not was_ready,
        )

    async def _run_epoch(self, epoch: RingEpoch) -> Verdict | None:
        """Run one epoch to its end; why it failed, None after a stop or restart."""
        plan = epoch.plan
        logger.info("epoch %d: starting %d ranks at %s", plan.epoch, plan.ring_size, ", ".join(plan.hosts))
        try:
            await epoch.start()
        except OSError as error:
            await epoch.end()
            return Verdict(f"a rank cannot be started: {error}")
        failure = asyncio.create_task(epoch.wait_for_failure())
        asked = asyncio.create_task(wait_for_any(self._stop, self._restart))
        try:
            await asyncio.wait([failure, asked], return_when=asyncio.FIRST_COMPLETED)
            if failure.done():
                return failure.result()
            await cancel(failure)
            is_clean = await epoch.drain(self._running.settings.shutdown_timeout + STOP_LAP_LIMIT_S)
            logger.info("epoch %d: %s", plan.epoch, "drained" if is_clean else "ended")
            mark_ring_ended(self._running.settings.run_dir, plan.epoch, "stopped", None)
            return None
        finally:
            await cancel(asked)
            await epoch.end()
