"""The supervisor: starts the ranks and the front door, watches them, and starts again what fails.

The only program that knows all processes of the service. It owns the lock of STATE_DIR and the front door's
listening socket (so that a restart of the front door refuses no connection), and says what it sees in
run/supervisor.json. It does nothing between heartbeats. Run by `start`; `python -m cluster.supervisor
[--set KEY=VALUE …]` by hand.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cluster import ports
from cluster.child import Child, ChildPlan, describe_exit, start_child
from cluster.errors import ClusterError
from cluster.lock import SupervisorLock
from cluster.log_files import log_path
from cluster.processes import count_cores, identify
from cluster.restart_policy import MAX_DELAY_S, RestartPolicy
from cluster.ring_life import EXIT_REFUSED, HEARTBEAT_LIMIT_S, LifePlan, RingLife, is_running
from cluster.service import read_service_at
from cluster.state_file import (
    STATE_NAME,
    SupervisorState,
    last_epoch,
    make_process_entry,
    make_rank_entry,
    make_state,
    mark_ring_ended,
)
from cluster.stop import end_leftovers
from config import Settings, SettingsError, load_settings
from config.limits import raise_descriptor_limits
from config.logs import configure_logging
from config.ring_secret import load_ring_secret
from config.rotating_file import RotatingFile
from config.run_files import write_json
from config.show import parse_overrides

ROOT = Path(__file__).resolve().parent.parent
API_END_LIMIT_S = 5.0
# Rank 0 drains for SHUTDOWN_TIMEOUT; then it puts back what still runs and sends STOP round.
STOP_LAP_LIMIT_S = 5.0
API_PROGRESS_S = 30.0

logger = logging.getLogger("cluster.supervisor")


@dataclass(frozen=True)
class Programs:
    """What is started for a rank and for the front door, and how long a rank may be silent."""

    rank: Sequence[str] = (sys.executable, str(ROOT / "server.py"))
    api: Sequence[str] = (sys.executable, str(ROOT / "api.py"))
    folder: Path = ROOT
    heartbeat_limit_s: float = HEARTBEAT_LIMIT_S
    restart_delay_s: float = field(default_factory=lambda: RestartPolicy().first_delay_s)


class Supervisor:
    """Runs once: `run` returns when the service has been stopped and every process of it is gone."""

    def __init__(self, settings: Settings, overrides: Mapping[str, str], programs: Programs) -> None:
        self._settings = settings
        self._programs = programs
        self._stop = asyncio.Event()
        self._api_stop = asyncio.Event()
        self._logs: dict[str, RotatingFile] = {}
        self._life: RingLife | None = None
        self._api: Child | None = None
        self._is_api_serving = False
        self._was_ready = False
        self._environment = make_environment(settings, overrides)
        me = identify(os.getpid())
        assert me is not None
        self._state = SupervisorState(
            pid=me.pid,
            start_time=me.start_time,
            started_unix=time.time(),
            api={"host": settings.api_host, "port": settings.api_port},
            overrides=dict(overrides),
            settings=settings.public(),
        )

    async def run(self) -> int:
        """Serve until SIGTERM or SIGINT; the exit code."""
        run_dir = self._settings.run_dir
        lock = SupervisorLock(run_dir)
        try:
            if num_left := end_leftovers(read_service_at(run_dir)):
                logger.warning("ended %d processes of a supervisor that was killed", num_left)
            self._state.epoch = last_epoch(run_dir)
            secret = load_ring_secret(self._settings)
            with ports.listen(self._settings.api_host, self._settings.api_port) as listening:
                self._watch_signals()
                await self._keep_all(secret, listening)
            self._set_state("stopped", None)
        except (ClusterError, SettingsError) as error:
            self._set_state("failed", str(error))
            raise
        finally:
            lock.release()
        return 0

    async def _keep_all(self, secret: str, listening: socket.socket) -> None:
        """Keep ring and front door until asked to stop; the ring ends first, so that answers are sent."""
        ring = asyncio.create_task(self._keep_ring(secret))
        api = asyncio.create_task(self._keep_api(listening))
        stop = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait([ring, api, stop], return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._stop.set()
            stop.cancel()
            if self._state.state != "failed":
                self._set_state("stopping", None)
            await asyncio.wait([ring])
            self._api_stop.set()
            await asyncio.wait([api])
        await asyncio.gather(ring, api)

    async def _keep_ring(self, secret: str) -> None:
        policy = RestartPolicy(first_delay_s=self._programs.restart_delay_s)
        while not self._stop.is_set():
            life = self._life = RingLife(self._plan_life(secret), self._log_of, self._publish)
            reason = await self._live(life)
            if reason is None:
                return
            mark_ring_ended(self._settings.run_dir, life.plan.epoch, "failed", reason)
            delay_s = policy.after_failure(made_progress=life.made_progress, is_permanent=life.was_refused)
            self._state.failed_process = life.failed_process
            if delay_s is None:
                logger.error("the ring is given up after %d failures: %s", policy.num_failures, reason)
                self._set_state("failed", reason)
                await self._stop.wait()
                return
            logger.warning("%s; the ring starts again in %.1f s", reason, delay_s)
            self._state.num_restarts += 1
            self._set_state("degraded" if self._was_ready else "starting", reason)
            await wait_at_most(self._stop, delay_s)

    async def _live(self, life: RingLife) -> str | None:
        """Live one life of the ring to its end; the reason it failed, None when it was stopped."""
        epoch = life.plan.epoch
        logger.info(
            "epoch %d: starting %d ranks at %s", epoch, life.plan.ring_size, ", ".join(life.plan.hosts)
        )
        try:
            await life.start()
        except OSError as error:
            await life.end()
            return f"a rank cannot be started: {error}"
        failure = asyncio.create_task(life.wait_for_failure())
        stop = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait([failure, stop], return_when=asyncio.FIRST_COMPLETED)
            if failure.done():
                return failure.result()
            failure.cancel()
            await asyncio.gather(failure, return_exceptions=True)
            is_clean = await life.drain(self._settings.shutdown_timeout + STOP_LAP_LIMIT_S)
            logger.info("epoch %d: %s", epoch, "drained" if is_clean else "ended")
            mark_ring_ended(self._settings.run_dir, epoch, "stopped", None)
            return None
        finally:
            stop.cancel()
            await life.end()

    async def _keep_api(self, listening: socket.socket) -> None:
        policy = RestartPolicy(first_delay_s=self._programs.restart_delay_s)
        while not self._api_stop.is_set():
            started_at = time.monotonic()
            reason = await self._serve_api(listening)
            if reason is None:
                return
            is_refused = self._api is not None and self._api.exit_code == EXIT_REFUSED
            delay_s = policy.after_failure(
                made_progress=time.monotonic() - started_at > API_PROGRESS_S,
                is_permanent=is_refused and not self._was_ready,
            )
            self._state.failed_process = "api"
            if delay_s is None and self._was_ready:
                delay_s = MAX_DELAY_S  # a service that worked is worth trying for
            if delay_s is None:
                logger.error("the front door is given up after %d failures: %s", policy.num_failures, reason)
                self._set_state("failed", reason)
                await self._api_stop.wait()
                return
            logger.warning("%s; it starts again in %.1f s", reason, delay_s)
            self._state.num_restarts += 1
            self._state.reason = reason
            self._publish()
            await wait_at_most(self._api_stop, delay_s)

    async def _serve_api(self, listening: socket.socket) -> str | None:
        """Run the front door to its end; the reason it failed, None when it was stopped."""
        plan = ChildPlan(
            name="api",
            command=[*self._programs.api, "--fd", str(listening.fileno())],
            folder=self._programs.folder,
            environment=self._environment,
            descriptors=(listening.fileno(),),
        )
        try:
            child = self._api = await start_child(plan, self._log_of("api"))
        except OSError as error:
            return f"the front door cannot be started: {error}"
        self._publish()
        answered = asyncio.create_task(self._wait_for_answer(child))
        ended = asyncio.create_task(child.wait())
        stop = asyncio.create_task(self._api_stop.wait())
        try:
            await asyncio.wait([ended, stop], return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                child.send(signal.SIGTERM)
                await asyncio.wait([ended], timeout=API_END_LIMIT_S)
                return None
            last = f": {child.log.last_lines[-1]}" if child.log.last_lines else ""
            return f"the front door {describe_exit(ended.result())}{last}"
        finally:
            self._is_api_serving = False
            stop.cancel()
            answered.cancel()
            await child.end(grace_s=0.0)
            await asyncio.gather(ended, answered, return_exceptions=True)

    async def _wait_for_answer(self, child: Child) -> None:
        """Ask the front door for anything: the connection waits in our socket's backlog until it serves."""
        host, port = ports.host_to_dial(self._settings.api_host), self._settings.api_port
        limit_s = self._settings.connect_timeout
        try:
            async with asyncio.timeout(limit_s):
                reader, writer = await asyncio.open_connection(host, port)
                writer.write(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                self._is_api_serving = bool(await reader.read(1))
                writer.close()
        except TimeoutError:
            logger.error("the front door does not answer within CONNECT_TIMEOUT=%g s", limit_s)
            child.send(signal.SIGKILL)
        except OSError as error:
            logger.warning("the front door cannot be reached at %s: %s", host, error.strerror)
        self._publish()

    def _plan_life(self, secret: str) -> LifePlan:
        settings = self._settings
        self._state.epoch += 1
        address = settings.ring_address
        free = ports.free_ring_ports(address, settings.local_ranks)
        return LifePlan(
            epoch=self._state.epoch,
            hosts=tuple(f"{address}:{port}" for port in free),
            secret=secret,
            command=self._programs.rank,
            folder=self._programs.folder,
            environment=self._environment,
            connect_limit_s=settings.connect_timeout,
            load_limit_s=settings.load_timeout,
            heartbeat_limit_s=self._programs.heartbeat_limit_s,
        )

    def _log_of(self, process: str) -> RotatingFile:
        if process not in self._logs:
            self._logs[process] = RotatingFile(log_path(self._settings.log_dir, process))
        return self._logs[process]

    def _set_state(self, state: str, reason: str | None) -> None:
        self._state.state, self._state.reason = state, reason
        self._publish()

    def _publish(self) -> None:
        """Write supervisor.json; `starting` and `degraded` become `ready` here, when all is."""
        state = self._state
        if self._life and state.state in ("starting", "degraded", "ready"):
            is_ready = self._life.is_ready and self._is_api_serving and is_running(self._api)
            if is_ready and state.state != "ready":
                logger.info("ready: epoch %d at %s", state.epoch, ports.make_url(**state.api))
                self._was_ready = True
                state.reason = state.failed_process = None
            state.state = "ready" if is_ready else ("degraded" if self._was_ready else "starting")
        ranks = [make_rank_entry(rank) for rank in self._life.ranks] if self._life else []
        state.processes = [entry for entry in ranks if entry]
        if self._api:
            state.processes.append(
                make_process_entry(self._api, "ready" if self._is_api_serving else "starting")
            )
        try:
            write_json(self._settings.run_dir / STATE_NAME, make_state(state))
        except OSError as error:
            # A full disk must not end the service; the next change is written again.
            logger.warning("cannot write %s: %s", STATE_NAME, error.strerror)

    def _watch_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_stop_signal)

    def _on_stop_signal(self) -> None:
        """The first one drains, the second one does not wait for it."""
        if self._stop.is_set() and self._life:
            self._life.abandon()
        self._stop.set()


async def wait_at_most(event: asyncio.Event, limit_s: float) -> None:
    """Wait for an event, or until the time is up."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(limit_s):
            await event.wait()


def make_environment(settings: Settings, overrides: Mapping[str, str]) -> dict[str, str]:
    """The children's environment: ours, the command line's settings, this machine's share of BLAS threads."""
    environment = {**os.environ, **overrides, "PYTHONUNBUFFERED": "1"}
    if settings.blas_threads == "auto":
        environment["BLAS_THREADS"] = str(max(1, count_cores() // settings.local_ranks))
    return environment


async def supervise(settings: Settings, overrides: Mapping[str, str], programs: Programs) -> int:
    """Build the supervisor and run it; the exit code."""
    supervisor = Supervisor(settings, overrides, programs)
    try:
        return await supervisor.run()
    except ClusterError as error:
        logger.error("%s", error)
        return error.exit_code
    except SettingsError as error:
        logger.error("%s", error)
        return 2


def run_supervisor(overrides: Mapping[str, str], programs: Programs | None = None) -> int:
    """The supervisor as a program: settings, limits, logs, then its loop."""
    try:
        settings = load_settings(overrides)
        settings.require_single_host()
        configure_logging(settings, process="supervisor")
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    if message := raise_descriptor_limits(settings):
        logger.warning("%s", message)
    return asyncio.run(supervise(settings, overrides, programs or Programs()))


def parse_flags(arguments: Sequence[str]) -> dict[str, str]:
    """The overrides of `--set KEY=VALUE …`, as `start` passes them."""
    parser = argparse.ArgumentParser(prog="python -m cluster.supervisor")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    return parse_overrides(parser.parse_args(arguments).set)


if __name__ == "__main__":
    sys.exit(run_supervisor(parse_flags(sys.argv[1:])))
