"""One child process of the supervisor: its pipes, its log, its end.

Its standard input stays open until it shall end: at end of file a child exits. A child whose command is ssh
runs on another host: ssh passes on the exit code from there, reports signal N as 128 + N, and uses 255 for
its own failure. Knows nothing of ranks or of the front door.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cluster.log_files import LineBuffer, ProcessLog
from cluster.processes import ProcessIdentity, identify
from cluster.supervisor.tasks import cancel
from config.rotating_file import RotatingFile

READ_BYTES = 64 * 1024
KILL_LIMIT_S = 10.0
# End of file reaches a process on another host a little later.
REMOTE_GRACE_S = 3.0
EXIT_SSH = 255
FIRST_SIGNAL_CODE = 128

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ChildPlan:
    """What to start; `descriptors` keep their numbers in the child."""

    name: str
    command: Sequence[str]
    folder: Path
    environment: Mapping[str, str]

    descriptors: tuple[int, ...] = ()
    is_remote: bool = False  # the command is ssh


@dataclass
class Child:
    """A process that we started and must reap; only `start_child` makes one."""

    plan: ChildPlan
    process: asyncio.subprocess.Process
    identity: ProcessIdentity
    started_unix: float
    log: ProcessLog
    # Ends the process on the other host where ssh cannot; never raises.
    kill_there: Callable[[], Awaitable[None]] | None = None
    _pumps: list[asyncio.Task[None]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.plan.name

    @property
    def exit_code(self) -> int | None:
        """Negative for a signal, as in subprocess; None while it runs."""
        code = self.process.returncode
        if self.plan.is_remote and code is not None and FIRST_SIGNAL_CODE < code < EXIT_SSH:
            return FIRST_SIGNAL_CODE - code
        return code

    @property
    def has_lost_host(self) -> bool:
        """It ran on another host, and ssh ended without its exit code."""
        code = self.process.returncode
        return self.plan.is_remote and code is not None and (code == EXIT_SSH or code < 0)

    async def wait(self) -> int:
        """Wait for its end and its last output; its exit code as asyncio reports it."""
        code = await self.process.wait()
        if self._pumps:
            await asyncio.wait(self._pumps, timeout=1.0)
        return code

    def send(self, number: signal.Signals) -> None:
        """Send a signal if it runs."""
        if self.exit_code is None:
            self.identity.send(number)

    async def write_line(self, line: str) -> None:
        """Send a line to its standard input; to a dead child it does nothing."""
        stdin = self.process.stdin
        if stdin is None or stdin.is_closing():
            return
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            stdin.write(line.encode() + b"\n")
            await stdin.drain()

    def write_soon(self, line: str) -> None:
        """Send a line without waiting for room in the pipe."""
        stdin = self.process.stdin
        if self.exit_code is None and stdin is not None and not stdin.is_closing():
            stdin.write(line.encode() + b"\n")

    def close_stdin(self) -> None:
        """Ask it to exit: end of file on its standard input."""
        if self.process.stdin is not None:
            self.process.stdin.close()

    async def end(self, grace_s: float) -> None:
        """End of file, then SIGKILL after `grace_s`; it is reaped when this returns."""
        if self.exit_code is None:
            self.close_stdin()
            if not await self._ends_within(max(grace_s, REMOTE_GRACE_S if self.plan.is_remote else 0.0)):
                if self.kill_there is not None:
                    await self.kill_there()
                    await self._ends_within(REMOTE_GRACE_S)
                self.send(signal.SIGKILL)
                if not await self._ends_within(KILL_LIMIT_S):
                    logger.error("%s (pid %d) survives SIGKILL", self.name, self.identity.pid)
        self.close_stdin()
        await cancel(*self._pumps)

    async def _ends_within(self, limit_s: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await self.wait()
        return self.exit_code is not None


async def start_child(plan: ChildPlan, file: RotatingFile, output: LineBuffer | None = None) -> Child:
    """Start a process in its own session, so that Ctrl-C in a terminal reaches the supervisor only.

    Args:
        file: the log for its standard error, and for its standard output without `output`.

    Raises:
        OSError: it cannot be started; the caller counts that as a failure.
    """
    process = await asyncio.create_subprocess_exec(
        *plan.command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=plan.folder,
        env=dict(plan.environment),
        pass_fds=plan.descriptors,
        start_new_session=True,
    )
    now = time.time()
    identity = identify(process.pid) or ProcessIdentity(process.pid, now)
    child = Child(plan, process, identity, now, ProcessLog(file))
    assert process.stdout
    assert process.stderr
    child._pumps = [
        asyncio.create_task(_pump(process.stderr, child.log)),
        asyncio.create_task(_pump(process.stdout, output or ProcessLog(file))),
    ]
    return child


async def _pump(stream: asyncio.StreamReader, lines: LineBuffer) -> None:
    while data := await stream.read(READ_BYTES):
        lines.feed(data)
    lines.finish()


def describe_exit(code: int) -> str:
    """`exited with code 3`, `was killed by SIGKILL`."""
    if code >= 0:
        return f"exited with code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
