"""Keeps the front door running: one process on a socket that the supervisor holds, started again when it
ends or does not answer.

A roll (for new settings or code) starts the next process on the same socket. When that one serves, the old
one finishes its clients' requests and exits, so that no client is refused or cut off. Knows nothing of HTTP:
a front door writes {"event": "serving"} on its standard output when it takes connections.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

from cluster.log_files import LineBuffer, ProcessLog
from cluster.ports import host_to_dial
from cluster.supervisor.child import Child, ChildPlan, describe_exit, start_child
from cluster.supervisor.front_door_watch import wait_for_silence
from cluster.supervisor.restart_policy import RestartPolicy
from cluster.supervisor.ring_epoch import EXIT_REFUSED, Verdict, make_settings_line
from cluster.supervisor.running import Running, make_environment
from cluster.supervisor.tasks import cancel

API_END_LIMIT_S = 5.0
API_PROGRESS_S = 30.0
# A replaced front door exits by itself a little after the longest request.
RETIRE_EXTRA_S = 10.0

logger = logging.getLogger("cluster.supervisor.supervisor")


class Output(LineBuffer):
    """A front door's standard output: notes the serving event, and logs everything else."""

    def __init__(self, log: ProcessLog, on_change: Callable[[], None]) -> None:
        super().__init__()
        self._log = log
        self._on_change = on_change
        self.is_serving = asyncio.Event()

    def put_line(self, line: str) -> None:
        try:
            is_event = json.loads(line)["event"] == "serving"
        except (ValueError, TypeError, KeyError):
            is_event = False
        if is_event:
            self.is_serving.set()
            self._on_change()
        else:
            self._log.put_line(line)


class FrontDoorKeeper:
    """Runs once: `keep` returns when the front door was stopped."""

    def __init__(self, running: Running, listening: socket.socket) -> None:
        self._running = running
        self._listening = listening
        self._stop = asyncio.Event()
        self._rolls: asyncio.Queue[asyncio.Future[str | None]] = asyncio.Queue()
        self._asked = asyncio.Event()  # set by `roll`: ends a pause between tries
        self._retiring: dict[asyncio.Task[None], Child] = {}
        self._output: Output | None = None
        self._was_silent = False
        self.child: Child | None = None

    @property
    def is_serving(self) -> bool:
        """The current process takes connections."""
        child, output = self.child, self._output
        return child is not None and child.exit_code is None and bool(output and output.is_serving.is_set())

    @property
    def leaving(self) -> list[Child]:
        """Replaced front doors that finish their clients' requests."""
        return list(self._retiring.values())

    def stop(self) -> None:
        """Ask `keep` to end the front door and return."""
        self._stop.set()

    async def roll(self) -> str | None:
        """Replace the process by one with the current settings; why that failed, else None."""
        done: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self._rolls.put_nowait(done)
        self._asked.set()
        return await done

    async def send_settings(self, values: Mapping[str, Any]) -> None:
        """Send it new values of live settings."""
        if self.child is not None:
            await self.child.write_line(make_settings_line(values))

    async def keep(self) -> None:
        """Keep it running until `stop`."""
        policy = RestartPolicy(first_delay_s=self._running.programs.restart_delay_s)
        while not self._stop.is_set():
            started_at = time.monotonic()
            self._was_silent = False
            self._asked.clear()
            reason = await self._serve()
            if reason is None:
                break
            code = self.child.exit_code if self.child else None
            delay_s = policy.after_failure(
                made_progress=time.monotonic() - started_at > API_PROGRESS_S,
                is_permanent=code == EXIT_REFUSED,
                was_killed=code == -signal.SIGKILL and not self._was_silent,  # from outside
                can_give_up=not self._running.state.was_ready,
            )
            verdict = Verdict(reason, "api")
            await self._running.pause("the front door", verdict, delay_s, policy, self._stop, self._asked)
        await asyncio.gather(*self._retiring, return_exceptions=True)

    async def _serve(self) -> str | None:
        """Run the front door and its replacements until one fails; why, None after a stop."""
        try:
            await self._start()
        except OSError as error:
            return f"the front door cannot be started: {error}"
        try:
            while True:
                assert self.child is not None
                reason = await self._watch(self.child)
                if reason != "":
                    return reason
        finally:
            if self.child is not None:
                await self.child.end(grace_s=0.0)
            self._running.publish()

    async def _watch(self, child: Child) -> str | None:
        """Wait for the end of one front door; why it failed, None after a stop, "" after a roll."""
        ended = asyncio.create_task(child.wait())
        stop = asyncio.create_task(self._stop.wait())
        asked = asyncio.create_task(self._rolls.get())
        late = asyncio.create_task(self._watch_start(child))
        silent = asyncio.create_task(self._watch_silence(child))
        try:
            await asyncio.wait([ended, stop, asked, silent], return_when=asyncio.FIRST_COMPLETED)
            if silent.done() and not stop.done():
                if asked.done():
                    self._rolls.put_nowait(asked.result())  # for the next process
                return silent.result()
            if asked.done() and not stop.done():
                asked.result().set_result(await self._replace(child))
                return "" if not ended.done() or self.child is not child else _describe_end(child)
            if not ended.done():
                child.send(signal.SIGTERM)
                await asyncio.wait([ended], timeout=API_END_LIMIT_S)
                return None
            return _describe_end(child)
        finally:
            await cancel(ended, stop, asked, late, silent)

    async def _start(self) -> None:
        plan = ChildPlan(
            name="api",
            command=[*self._running.programs.api, "--fd", str(self._listening.fileno())],
            folder=self._running.programs.folder,
            environment=make_environment(self._running.settings),
            descriptors=(self._listening.fileno(),),
        )
        file = self._running.log_of("api")
        output = Output(ProcessLog(file), self._running.publish)
        self.child = await start_child(plan, file, output)
        self._output = output
        self._running.publish()

    async def _watch_start(self, child: Child) -> None:
        """Kill a front door that does not serve in time."""
        limit_s, output = self._running.settings.connect_timeout, self._output
        assert output is not None
        try:
            async with asyncio.timeout(limit_s):
                await output.is_serving.wait()
        except TimeoutError:
            logger.error("the front door does not serve within CONNECT_TIMEOUT=%g s", limit_s)
            child.send(signal.SIGKILL)

    async def _watch_silence(self, child: Child) -> str:
        """Kill a front door that no longer answers; why."""
        assert self._output is not None
        await self._output.is_serving.wait()
        host, port = self._listening.getsockname()[:2]
        limit_s = self._running.programs.api_silence_limit_s
        reason = await wait_for_silence(child.identity, (host_to_dial(host), port), limit_s)
        self._was_silent = True
        child.send(signal.SIGKILL)
        return reason

    async def _replace(self, old: Child) -> str | None:
        """Start the next front door beside the old one, and retire that when the next one serves."""
        old_output = self._output
        try:
            await self._start()
        except OSError as error:
            return f"the front door cannot be started: {error}"
        child, output = self.child, self._output
        assert child is not None
        assert output is not None
        ended, serving = asyncio.create_task(child.wait()), asyncio.create_task(output.is_serving.wait())
        limit_s = self._running.settings.connect_timeout
        await asyncio.wait([ended, serving], timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
        is_serving = serving.done() and not ended.done()
        await cancel(ended, serving)
        if is_serving:
            retiring = asyncio.create_task(self._retire(old))
            self._retiring[retiring] = old
            retiring.add_done_callback(self._retiring.pop)
            return None
        await child.end(0.0)
        self.child, self._output = old, old_output
        return f"the new front door {describe_exit(child.exit_code or 0)}{_last_line(child)}"

    async def _retire(self, old: Child) -> None:
        """Let an old front door finish its clients' requests, then end it."""
        old.send(signal.SIGTERM)
        ended, stop = asyncio.create_task(old.wait()), asyncio.create_task(self._stop.wait())
        limit_s = self._running.settings.request_timeout + RETIRE_EXTRA_S
        try:
            await asyncio.wait([ended, stop], timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
            if not ended.done() and stop.done():
                await asyncio.wait([ended], timeout=API_END_LIMIT_S)
        finally:
            await cancel(ended, stop)
            await old.end(0.0)


def _describe_end(child: Child) -> str:
    code = child.exit_code
    assert code is not None
    return f"the front door {describe_exit(code)}{_last_line(child)}"


def _last_line(child: Child) -> str:
    is_killed = (child.exit_code or 0) < 0  # its last line is of its work, then
    return f": {child.log.last_words}" if child.log.last_words and not is_killed else ""
