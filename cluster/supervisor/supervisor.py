"""The supervisor: starts the ranks and the front door, watches them, and starts again what fails.

The only program that knows all processes of the service. It holds the lock of STATE_DIR and the front door's
listening socket (so that neither a crash nor a restart refuses a connection), follows edits of the settings
files, and writes its state to run/supervisor.json. SIGTERM stops, SIGHUP restarts ring and front door with
new settings (reload.py). `start` runs it; by hand: `python -m cluster.supervisor.supervisor [--set KEY=VALUE
…]`.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster import ports
from cluster.disk import find_disk_trouble
from cluster.errors import ClusterError
from cluster.hosts.code_marks import mark_supervisor
from cluster.processes import ProcessIdentity, identify
from cluster.supervisor.front_door import FrontDoorKeeper
from cluster.supervisor.leftovers import end_leftovers
from cluster.supervisor.lock import SupervisorLock
from cluster.supervisor.reload import RestartOrder, SettingsWatch, Sources, load_ordered, take_order
from cluster.supervisor.ring_keeper import RingKeeper
from cluster.supervisor.running import ROOT, Programs, Running
from cluster.supervisor.service import read_service_at
from cluster.supervisor.state_file import (
    STATE_NAME,
    SupervisorState,
    forget_trouble,
    last_epoch,
    make_process_entry,
    make_rank_entry,
)
from cluster.supervisor.tasks import cancel, wait_for_any
from config import Settings, SettingsError, load_settings
from config.checks import start_problems
from config.limits import raise_descriptor_limits
from config.logs import configure_logging, let_go_of_lost_lines, say, set_level
from config.ring_secret import load_ring_secret
from config.run_files import write_status
from config.show import parse_overrides

SETTINGS_LOOK_S = 1.0

logger = logging.getLogger("cluster.supervisor.supervisor")


class Supervisor:
    """Runs once: `run` returns when the service was stopped and all its processes have ended."""

    def __init__(self, settings: Settings, overrides: Mapping[str, str], programs: Programs) -> None:
        me = identify(os.getpid())
        assert me is not None
        state = SupervisorState(
            pid=me.pid,
            start_time=me.start_time,
            started_unix=time.time(),
            api={"host": settings.api_host, "port": settings.api_port},
            overrides=dict(overrides),
            settings=settings.public(),
            code=mark_supervisor(ROOT),
        )
        self._running = Running(settings, overrides, programs, state, self._publish)
        self._watch = SettingsWatch(Sources(settings.root, overrides))
        self._disk_trouble: str | None = None
        self._stop = asyncio.Event()
        self._hangup = asyncio.Event()
        self._has_terminal = sys.stdin is not None and sys.stdin.isatty()
        self._ring: RingKeeper | None = None
        self._api: FrontDoorKeeper | None = None

    async def run(self) -> int:
        """Serve until SIGTERM or SIGINT; the exit code."""
        running, settings = self._running, self._running.settings
        lock = SupervisorLock(settings.run_dir)
        try:
            before = read_service_at(settings.run_dir)
            if num_left := end_leftovers(before):
                logger.warning("ended %d processes that a killed supervisor left", num_left)
            running.state.epoch = last_epoch(settings.run_dir)
            running.state.was_ready = bool(before.supervisor.get("was_ready"))
            secret = load_ring_secret(settings)
            with ports.listen(settings.api_host, settings.api_port) as listening:
                self._watch_signals()
                await self._keep_all(secret, listening, before.left_behind)
            running.set_state("stopped", None)
        except (ClusterError, SettingsError) as error:
            running.set_state("failed", str(error))
            raise
        finally:
            lock.release()
        return 0

    async def _keep_all(
        self, secret: str, listening: socket.socket, left_behind: Mapping[str, Sequence[ProcessIdentity]]
    ) -> None:
        """Keep ring and front door until a stop; the ring ends first, so that its answers still go out."""
        self._ring = RingKeeper(self._running, secret, left_behind)
        self._api = FrontDoorKeeper(self._running, listening)
        ring = asyncio.create_task(self._ring.keep())
        api = asyncio.create_task(self._api.keep())
        retune = asyncio.create_task(self._retune(self._ring, self._api))
        stop = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait([ring, api, retune, stop], return_when=asyncio.FIRST_COMPLETED)
        finally:
            await cancel(stop, retune)
            if self._running.state.state != "failed":
                self._running.set_state("stopping", None)
            self._ring.stop()
            await asyncio.wait([ring])
            self._api.stop()
            await asyncio.wait([api])
        await asyncio.gather(ring, api)

    async def _retune(self, ring: RingKeeper, api: FrontDoorKeeper) -> None:
        """Follow edits of the settings files and orders to restart."""
        while True:
            await wait_for_any(self._hangup, limit_s=SETTINGS_LOOK_S)
            self._look_at_disk()
            if self._hangup.is_set():
                self._hangup.clear()
                await self._restart(ring, api)
            elif self._watch.sources.root.is_dir():
                await self._follow_edit(ring, api)

    def _look_at_disk(self) -> None:
        """Log when the disk begins to refuse requests, and when it accepts them again."""
        before, self._disk_trouble = self._disk_trouble, find_disk_trouble(self._running.settings.state_dir)
        if self._disk_trouble and not before:
            logger.warning("%s", self._disk_trouble)
        elif before and not self._disk_trouble:
            logger.info("requests are accepted again: the disk has room")

    async def _follow_edit(self, ring: RingKeeper, api: FrontDoorKeeper) -> None:
        running = self._running
        edit = self._watch.look(running.settings)
        if edit is None:
            return
        running.settings = edit.settings
        running.state.settings = edit.settings.public()
        running.state.settings_error = edit.error
        if edit.error is None:
            running.state.needs_restart = edit.needs_restart
        set_level(edit.settings.log_level)
        self._publish()
        if edit.values:
            if ring.epoch is not None:
                await ring.epoch.send_settings(edit.values)
            await api.send_settings(edit.values)

    async def _restart(self, ring: RingKeeper, api: FrontDoorKeeper) -> None:
        """Do what `restart` orders: a new epoch of the ring and a new front door."""
        running = self._running
        order = take_order(running.settings.run_dir)
        if order is None and self._has_terminal:
            self._stop.set()  # the terminal of `start --foreground` was closed
            return
        if order is None:  # kill -HUP by hand: read the files again, with the same flags
            order = RestartOrder("", dict(running.overrides), dict(self._watch.sources.environ))
        sources = Sources(running.settings.root, order.overrides, self._environ_of(order))
        try:
            settings = load_ordered(sources, running.settings)
            configure_logging(settings, process="supervisor")
        except (SettingsError, ClusterError) as error:
            logger.error("no restart: %s", error)
            self._say_restart(order.id, "failed", str(error))
            return
        logger.info("restarting ring and front door")
        self._watch = SettingsWatch(sources)
        running.settings, running.overrides = settings, order.overrides
        running.state.settings, running.state.overrides = settings.public(), dict(order.overrides)
        running.state.needs_restart, running.state.settings_error = [], None
        ring.restart()
        forget_trouble(running.state)
        running.set_state("starting", None)
        self._say_restart(order.id, "running", None)
        reason = await api.roll()
        if reason is not None:
            logger.error("the front door goes on with the old settings: %s", reason)
        self._say_restart(order.id, "failed" if reason else "done", reason)

    def _environ_of(self, order: RestartOrder) -> dict[str, str]:
        """The environment of this process, but with the settings of the `restart` command's environment."""
        known = set(Settings.all_keys())
        mine = {key: value for key, value in os.environ.items() if key not in known}
        return mine | {key: value for key, value in order.environment.items() if key in known}

    def _say_restart(self, order_id: str, state: str, error: str | None) -> None:
        self._running.state.restart = {"id": order_id, "state": state, "error": error}
        self._publish()

    def _publish(self) -> None:
        """Write supervisor.json; `starting` and `degraded` become `ready` here when everything is ready."""
        running, state, ring, api = self._running, self._running.state, self._ring, self._api
        if ring and api and state.state in ("starting", "degraded", "ready"):
            is_ready = ring.is_ready and api.is_serving
            if is_ready and state.state != "ready":
                logger.info("ready: epoch %d at %s", state.epoch, ports.make_url(**state.api))
                running.was_ready = state.was_ready = True
                forget_trouble(state)
            state.state = "ready" if is_ready else running.unready
        if ring and api:
            state.processes = self._list_processes(ring, api)
            state.leaving = [make_process_entry(child, "leaving") for child in api.leaving]
        state.troubles = running.troubles.sentences(STATE_NAME)
        with running.troubles.guard(STATE_NAME):
            write_status(running.settings.run_dir / STATE_NAME, {"updated_unix": time.time(), **vars(state)})

    def _list_processes(self, ring: RingKeeper, api: FrontDoorKeeper) -> list[dict[str, Any]]:
        ranks = [make_rank_entry(rank) for rank in ring.epoch.ranks] if ring.epoch else []
        entries = [entry for entry in ranks if entry]
        if api.child:
            entries.append(make_process_entry(api.child, "ready" if api.is_serving else "starting"))
        return entries

    def _watch_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_stop_signal)
        loop.add_signal_handler(signal.SIGHUP, self._hangup.set)

    def _on_stop_signal(self) -> None:
        """The first signal drains, the second one ends the drain."""
        if self._stop.is_set() and self._ring:
            self._ring.stop()
        self._stop.set()


def run_supervisor(
    overrides: Mapping[str, str], programs: Programs | None = None, *, root: Path | None = None
) -> int:
    """The supervisor as a program: settings (files in `root`), logs and limits, then its loop."""
    try:
        settings = load_settings(overrides, root=root)
        if problems := start_problems(settings):
            raise SettingsError(problems)
        configure_logging(settings, process="supervisor")
    except SettingsError as error:
        say(error)
        return 2
    if message := raise_descriptor_limits(settings):
        logger.warning("%s", message)
    try:
        return asyncio.run(Supervisor(settings, overrides, programs or Programs()).run())
    except ClusterError as error:
        logger.error("%s", error)
        return error.exit_code
    except SettingsError as error:
        logger.error("%s", error)
        return 2
    finally:
        let_go_of_lost_lines()


def parse_flags(arguments: Sequence[str]) -> dict[str, str]:
    """The overrides of `--set KEY=VALUE …`."""
    parser = argparse.ArgumentParser(prog="python -m cluster.supervisor.supervisor")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    return parse_overrides(parser.parse_args(arguments).set)


if __name__ == "__main__":
    sys.exit(run_supervisor(parse_flags(sys.argv[1:])))
